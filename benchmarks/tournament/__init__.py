"""The tournament: every method at its own tuned rate on real GLUE, and the documents that are written from it."""
