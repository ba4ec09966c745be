"""Readers and writers of trajectory files: one module for each family of formats."""
