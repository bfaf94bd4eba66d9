"""Explainers: one file per method, each a frozen dataclass with the call of `core.Explainer`.

`presets` holds their settings per data set, `shared` what several methods use.
"""
