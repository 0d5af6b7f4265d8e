"""Sequence layers beside each other on small tasks, with equal parameters and equal training."""
