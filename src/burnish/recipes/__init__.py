"""TOML recipes that `demo`, `init` and `train NAME` start from; package data, no code."""
