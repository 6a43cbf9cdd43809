"""What looks at data and results without a model: the audit of a data file."""
