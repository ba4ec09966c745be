"""Worlds: the base class, tools, adapters, and one folder for each built-in environment."""
