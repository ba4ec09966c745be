"""Runs that claims and benchmarks make by the command line, and the warm starts on `scenes` that two of them share."""
