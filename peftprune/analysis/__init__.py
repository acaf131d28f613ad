"""Analyses of a stored study, as frames. The statistics are those of `peftprune.stats`."""
