"""How the pairs of the task entailment-mini were generated; the package carries them as a file."""
