"""Programs over files and runs: audit, compare."""
