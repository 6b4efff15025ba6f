"""Searches for better settings: Optuna around any trial function, and what it found as a page and as a promotion."""
