"""Speed of guided decoding, and the health of this machine."""
