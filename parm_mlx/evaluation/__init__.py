"""Scores and metrics of answers."""
