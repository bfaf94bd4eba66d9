"""Procedural renderers with known factors."""
