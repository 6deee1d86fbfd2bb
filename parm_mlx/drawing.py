"""Common settings of pictures; matplotlib draws them where it is installed (the ``plot`` extra)."""

from importlib.util import find_spec

INSTALL = "pip install 'parm-mlx[plot]'"

# Okabe and Ito's colours, which the colour-blind can tell apart; dashes and markers tell lines apart without colour.
STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#56B4E9", (0, (5, 1, 1, 1)), "v"),
    ("#E69F00", (0, (1, 1)), "P"),
)


def can_draw() -> bool:
    """Returns True if matplotlib is installed, without importing it."""
    return find_spec("matplotlib") is not None
