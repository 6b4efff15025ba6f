"""Hydra configuration: one group per wing, the only place where values are defined."""
