"""Evaluation: answers at a grid of preferences, their scores, metrics and a report."""
