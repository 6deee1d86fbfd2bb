"""Rewards: scores of answers."""
