"""Many methods on the same rows: the grid, where it runs, and its tables.

grid.yaml -> Grid -> cells (task x method x shots x data seed) -> folders -> table, plot
"""
