"""The run directory: one writer, many readers."""
