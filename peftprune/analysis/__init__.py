"""What a stored study says: readings of a `StoredStudy`, as frames. The statistics are those of `peftprune.stats`."""
