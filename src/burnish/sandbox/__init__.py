"""Running what a model wrote: the ladder of isolation, limits, results read back safely."""
