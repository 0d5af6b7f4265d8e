"""Measurements of kanerva_ext against the fastest PyTorch compositions for the same results."""
