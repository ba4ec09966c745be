"""Findings to Decisions: values that the loop carries out, or only writes down."""
