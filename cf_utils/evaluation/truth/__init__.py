"""Metrics against ground truth: the factors behind rendered images are known and can be moved."""
