"""Training one arm: the trainer, its events, checkpoints, evaluation, and the ledger of what was spent."""
