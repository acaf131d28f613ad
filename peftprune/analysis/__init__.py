"""What a stored study says: readings of a `Comparison`, as frames. The statistics are those of `peftprune.stats`."""
