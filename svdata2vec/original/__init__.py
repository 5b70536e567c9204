"""Checkpoints of the authors' code."""
