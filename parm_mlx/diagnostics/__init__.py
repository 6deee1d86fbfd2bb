"""How fast guided decoding is, and whether this machine computes it right."""
