"""Four methods in plain autograd, one item at a time: to read beside the paper, not to be fast.

Each function is equal to its explainer in float64 (tests). The explainers add batches, counted
passes, failure reasons and constraints.
"""
