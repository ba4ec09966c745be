"""Other people's endpoints, one file each."""
