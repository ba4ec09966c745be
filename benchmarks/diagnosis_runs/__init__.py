"""Parts of the benchmark of diagnosis."""
