"""How far a guide of another vocabulary is asked on, and what that has cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refinement:
    """How much is read to tell the tokens apart that need several guide tokens.

    Attributes:
        candidates: Most base tokens that are looked at.
        rows: Most rows that the guide reads for them at a time.
        rounds: Times that it does.
        tolerance: Share of the guided distribution that may be left open.
        share: Overhanging tokens of a smaller share of the mass are left out; of the hundredfold, both tokenizers are
            asked about each in its whole context, and of less beside its neighbour. After a row, tokens of a tenfold
            share of it are told apart.
    """

    candidates: int = 50
    rows: int = 16
    rounds: int = 4
    tolerance: float = 1e-2
    share: float = 1e-5


@dataclass
class AcrossCount:
    """What guidance across vocabularies has cost, and left out, so far.

    Attributes:
        positions: Places at which tokens were scored.
        passes: Passes of the guide.
        rows: Rows in them.
        open: Sum, over the positions, of the share of the guided distribution that was left open.
        most_open: The largest of these shares.
    """

    positions: int = 0
    passes: int = 0
    rows: int = 0
    open: float = 0.0
    most_open: float = 0.0

    def summary(self) -> dict[str, float]:
        """The numbers per position, as reports hold them."""
        each = max(self.positions, 1)
        return {
            "across_passes_per_token": self.passes / each,
            "across_rows_per_token": self.rows / each,
            "across_open": self.open / each,
            "across_most_open": self.most_open,
        }
