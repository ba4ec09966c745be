"""Composite rewards for written reports: text overlap, structured findings, counted errors, put on one scale."""
