"""The vocabulary: values and protocols that every room shares.  Standard library alone."""
