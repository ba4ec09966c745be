"""The other side of comparisons: what runs peers, in processes of their own.  Nothing here is run by hand."""
