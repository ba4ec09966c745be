"""Runs on `scenes` that the claim about collapsing grounding and the benchmark of noisy teachers share."""
