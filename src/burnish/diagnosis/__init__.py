"""Trajectory to constraints, violations, critical step, category and owner; reads rows of any agent, runs nothing."""
