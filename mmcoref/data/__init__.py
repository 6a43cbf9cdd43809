"""The text side: files, records, splits, prompts, tokens."""
