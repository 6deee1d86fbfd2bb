"""Guided decoding: a base model and a preference-aware guide as one model."""
