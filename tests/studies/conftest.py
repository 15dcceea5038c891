"""Quick garbage collection, as for the grids."""

from tests.bench.conftest import frozen

__all__ = ["frozen"]
