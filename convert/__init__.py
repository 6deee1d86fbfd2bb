"""Converters at the edge: other formats in, other formats out. Installed as ``parm_mlx.convert``."""
