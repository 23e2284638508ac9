"""One page about a run, or several: ``esrl-report SAVE_DIR…`` (docs/report.md)."""
