"""The parts of `benchmarks/faults.py`: injectors, runs, caches, detectors, scores."""
