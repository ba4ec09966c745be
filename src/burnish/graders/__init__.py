"""Graders: rules over trajectories, and aggregators that turn grades into rewards."""
