"""Metrics, one file per family; each docstring states definition, range, direction and source."""
