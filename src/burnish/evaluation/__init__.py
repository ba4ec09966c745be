"""Held-out runs, paired comparisons, the doctor."""
