"""In-context reinforcement learning: distil the learning histories of algorithms into sequence models."""

__version__ = "0.1.0"
