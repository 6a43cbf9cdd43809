"""What a run leaves behind: records, curves, checkpoints."""
