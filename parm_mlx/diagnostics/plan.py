"""The plan of a benchmark; read before MLX is loaded, so that a wrong number is refused at once."""

from dataclasses import dataclass

from parm_mlx.errors import InputError
from parm_mlx.ranges import Whole

HEAD = 64
BITS = (2, 3, 4, 5, 6, 8)
HIDDEN = Whole(HEAD, 2**16)
LAYERS = Whole(1, 1000)
VOCABULARY = Whole(1, 2**20)
PROMPT = TOKENS = Whole(1, 2**20)
ROUNDS = Whole(1, 10_000)


@dataclass(frozen=True)
class Size:
    """The size of a Llama with random weights."""

    hidden: int = 512  # size of the hidden states, a multiple of 64
    layers: int = 8
    vocabulary: int = 8000  # number of tokens
    bits: int | None = None  # width that weights are quantised to, in groups of 64; None for plain float32

    def __post_init__(self) -> None:
        """Raises InputError if there is no such model."""
        if self.hidden % HEAD:
            raise InputError(f"--hidden must be a multiple of {HEAD}, got {self.hidden}")
        if self.bits not in (None, *BITS):
            raise InputError(f"--bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")

    @property
    def numbers(self) -> int:
        """Estimates the number of its weights."""
        return self.hidden * (12 * self.hidden * self.layers + 2 * self.vocabulary)


@dataclass(frozen=True)
class Plan:
    """The measurements: each batch at the first prompt length, and each prompt length at the first batch."""

    batches: tuple[int, ...] = (1, 4, 16)  # numbers of sequences
    prompts: tuple[int, ...] = (64, 256)  # lengths in tokens
    tokens: int = 24  # decoded of each sequence in a round
    rounds: int = 3

    @property
    def steps(self) -> int:
        """Returns how often :func:`measure` yields."""
        return len(self.groups()) * (1 + self.rounds)

    def groups(self) -> list[tuple[int, int]]:
        """Returns (sequences, prompt tokens) of each comparison, without repetitions."""
        by_batch = [(batch, self.prompts[0]) for batch in self.batches]
        return list(dict.fromkeys(by_batch + [(self.batches[0], prompt) for prompt in self.prompts]))
