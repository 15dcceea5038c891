"""Quick garbage collection: every cell collects, and looking through all imports takes a second."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def frozen():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
