"""Conformance tests that authors of environments, graders and samplers inherit; scripted fakes."""
