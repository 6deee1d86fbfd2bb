"""Answers to prompts × preferences, and the folder that keeps them."""
