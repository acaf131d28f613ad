"""How often the verdicts of `peftprune.stats` are right, on simulated studies whose truth is known."""
