"""Sequence models: a context in, the next action out."""
