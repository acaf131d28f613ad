"""A study: what is requested, planned, trained and stored."""
