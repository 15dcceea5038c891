"""One HTML file about a run or a grid: everything inside it, nothing fetched, no scripts."""

from pemt.analysis.report.grid import write_grid_report
from pemt.analysis.report.run import RunFiles, files_of, read_run, write_run_report

__all__ = ["RunFiles", "files_of", "read_run", "write_grid_report", "write_run_report"]
