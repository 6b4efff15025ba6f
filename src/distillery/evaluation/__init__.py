"""Frozen weights act on tasks, episode after episode, and are measured."""
