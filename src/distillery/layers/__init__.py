"""Torch pieces that several wings use."""
