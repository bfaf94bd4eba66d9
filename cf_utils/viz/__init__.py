"""Figures, text views, interactive controls and the class survey."""
