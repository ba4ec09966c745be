"""Episodes, groups and the synchronous runner."""
