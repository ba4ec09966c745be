"""Tasksets: the user's own files, generated ones, other people's."""
