"""Rank pruning in your own Hugging Face or TRL Trainer: `PruningCallback`, `prepare` and `sampler`."""
