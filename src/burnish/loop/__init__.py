"""The conductor: owns all mutable run state, the always-on invariants, and wires the rooms."""
