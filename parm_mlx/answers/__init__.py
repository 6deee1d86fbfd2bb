"""Answers of a sweep, and where they are kept."""
