"""The plan of a benchmark; read before MLX is loaded, so that a wrong number is refused at once."""

from dataclasses import dataclass

from parm_mlx.errors import InputError
from parm_mlx.ranges import Whole, shown

HEAD = 64
BITS = (2, 3, 4, 5, 6, 8)
HIDDEN = Whole(HEAD, 2**16)
LAYERS = Whole(1, 1000)
VOCABULARY = Whole(1, 2**20)
BATCH = Whole(1, 4096)
PROMPT = TOKENS = Whole(1, 2**20)
ROUNDS = Whole(1, 10_000)


def _check(option: str, value: int, allowed: Whole) -> None:
    try:
        allowed.read(value)
    except ValueError as reason:
        raise InputError(f"{option} {reason}") from None


@dataclass(frozen=True)
class Size:
    """The size of a Llama with random weights.

    Attributes:
        hidden: Size of the hidden states, a multiple of 64.
        layers: Number of layers.
        vocabulary: Number of tokens.
        bits: Width that weights are quantised to, in groups of 64; None for plain float32.
    """

    hidden: int = 512
    layers: int = 8
    vocabulary: int = 8000
    bits: int | None = None

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            InputError: A size does not make a model.
        """
        _check("--hidden", self.hidden, HIDDEN)
        _check("--layers", self.layers, LAYERS)
        _check("--vocabulary", self.vocabulary, VOCABULARY)
        if self.hidden % HEAD:
            raise InputError(f"--hidden must be a multiple of {HEAD}, got {self.hidden}")
        if self.bits not in (None, *BITS):
            raise InputError(f"--bits must be one of {', '.join(map(str, BITS))}, got {shown(self.bits)}")

    @property
    def numbers(self) -> int:
        """Estimates the number of its weights."""
        return self.hidden * (12 * self.hidden * self.layers + 2 * self.vocabulary)


@dataclass(frozen=True)
class Plan:
    """The batches, prompts and rounds to measure.

    Attributes:
        batches: Numbers of sequences, each measured at the first prompt length.
        prompts: Prompt lengths in tokens, each measured at the first number of sequences.
        tokens: Tokens decoded of each sequence in a round.
        rounds: Number of rounds.
    """

    batches: tuple[int, ...] = (1, 4, 16)
    prompts: tuple[int, ...] = (64, 256)
    tokens: int = 24
    rounds: int = 3

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            InputError: A list is empty, or a number is out of its range.
        """
        for option, values, allowed in (
            ("--batch", self.batches, BATCH),
            ("--prompt", self.prompts, PROMPT),
            ("--tokens", (self.tokens,), TOKENS),
            ("--rounds", (self.rounds,), ROUNDS),
        ):
            if not values:
                raise InputError(f"{option} must name at least one number")
            for value in values:
                _check(option, value, allowed)

    @property
    def steps(self) -> int:
        """Returns how often :func:`measure` yields."""
        return len(self.groups()) * (1 + self.rounds)

    def groups(self) -> list[tuple[int, int]]:
        """Returns (sequences, prompt tokens) of each comparison, without repetitions."""
        by_batch = [(batch, self.prompts[0]) for batch in self.batches]
        return list(dict.fromkeys(by_batch + [(self.batches[0], prompt) for prompt in self.prompts]))
