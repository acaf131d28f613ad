"""Rank pruning in somebody else's Trainer, in one process or several: `PruningCallback`, `prepare` and `sampler`."""
