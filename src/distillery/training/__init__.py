"""Fits models to histories."""
