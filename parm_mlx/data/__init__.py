"""Preference data: files, pairs, tokens."""
