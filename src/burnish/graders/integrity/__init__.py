"""No reward for cheating: manifests, clean worlds, canaries, detectors of known exploits, and what a proof costs."""
