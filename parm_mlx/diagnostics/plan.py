"""What a benchmark is to measure; read before MLX is loaded, so that a wrong number is refused at once."""

from dataclasses import dataclass

from parm_mlx.errors import InputError

HEAD = 64
BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Size:
    """A Llama to be made of random weights.

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
        if self.hidden < HEAD or self.hidden % HEAD:
            raise InputError(f"--hidden must be a multiple of {HEAD}, got {self.hidden}")
        for name, value in (("--layers", self.layers), ("--vocabulary", self.vocabulary)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.bits not in (None, *BITS):
            raise InputError(f"--bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")


@dataclass(frozen=True)
class Plan:
    """What to measure.

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
            InputError: There is none of a kind, or one is below 1.
        """
        for option, values in (
            ("--batch", self.batches),
            ("--prompt", self.prompts),
            ("--tokens", (self.tokens,)),
            ("--rounds", (self.rounds,)),
        ):
            if not values or min(values) < 1:
                raise InputError(f"{option} takes numbers from 1 up, got {','.join(map(str, values)) or 'none'}")

    @property
    def steps(self) -> int:
        """How often :func:`measure` yields."""
        return len(self.groups()) * (1 + self.rounds)

    def groups(self) -> list[tuple[int, int]]:
        """(sequences, prompt tokens) of each comparison, without repetitions."""
        by_batch = [(batch, self.prompts[0]) for batch in self.batches]
        return list(dict.fromkeys(by_batch + [(self.batches[0], prompt) for prompt in self.prompts]))
