"""Entry points: wiring only. One file per pipeline stage."""
