"""Evaluation: metrics, ground truth from renderers, baselines, and the tables of the papers."""
