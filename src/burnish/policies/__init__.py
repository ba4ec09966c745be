"""Model building and loading, rendering messages to tokens, samplers."""
