"""Exports a finished arm as an adapter or a model, with its model card."""
