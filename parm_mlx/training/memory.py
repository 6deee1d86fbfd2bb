"""Peak memory of a training step, estimated from sizes alone.

What is held at the peak: the weights, the adapter with its gradient and Adam's two moments, what every layer keeps for
the backward pass, and the larger of two kinds of working memory: logits, a chunk of tokens at a time, or what the
backward pass of one layer takes. How many arrays of each shape that is follows from the operations; the numbers
for working memory were fitted to peaks that MLX measured, with attention written out as it is in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from parm_mlx.training.output import CHUNK
from parm_mlx.training.packing import round_up

FLOAT = 4
LAYER_HIDDEN, LAYER_MLP, LAYER_SCORES = 15.0, 3.2, 2.1
LOGITS, LOGITS_AHEAD, CHUNKS_AHEAD = 5.0, 1.3, 4
RECOMPUTED = 1.5


@dataclass(frozen=True)
class ModelSize:
    """The backbone.

    Attributes:
        hidden: Size of the hidden states.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Size of a head.
        intermediate: Inner size of the feed-forward part.
        vocabulary: Number of tokens it knows.
        itemsize: Bytes of a number in its activations.
        weights: Bytes of all weights.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    itemsize: int
    weights: int


@dataclass(frozen=True)
class AdapterSize:
    """The adapter.

    Attributes:
        numbers: Trainable numbers.
        inputs: Sizes of the inputs of the adapted layers in one block, added up.
        distinct: The same, but an input that several layers read counts once.
        dropout: Whether a part of each input is dropped.
    """

    numbers: int
    inputs: int
    distinct: int
    dropout: bool


@dataclass(frozen=True)
class Load:
    """The largest batch.

    Attributes:
        pairs: Pairs computed together.
        prefix: Tokens that both sequences of a pair share and that are read once, 0 where nothing is shared.
        rest: Tokens that are read of each sequence besides.
        targets: Response tokens of all sequences.
    """

    pairs: int
    prefix: int
    rest: int
    targets: int

    @property
    def cells(self) -> int:
        """Positions that the model reads."""
        return self.pairs * (self.prefix + 2 * self.rest)

    def of(self, pairs: int) -> "Load":
        """The same with fewer pairs."""
        return replace(self, pairs=pairs, targets=round(self.targets * pairs / self.pairs))

    def shortened(self, share: float) -> "Load":
        """The same with shorter sequences."""
        sizes = (round(size * share) for size in (self.prefix, self.rest, self.targets))
        return Load(self.pairs, *sizes)


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak.

    Attributes:
        weights: Of the backbone.
        adapter: The adapter, its gradient and the optimiser's moments.
        kept: What layers keep for the backward pass.
        working: Logits, or the backward pass of a layer.
    """

    weights: int
    adapter: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.adapter + self.kept + self.working


def estimate(model: ModelSize, adapter: AdapterSize, load: Load, checkpoint: bool) -> Estimate:
    """Estimates the peak of a training step.

    Args:
        model: The backbone.
        adapter: The adapter.
        load: The largest batch.
        checkpoint: Whether layers are computed again in the backward pass.
    """
    layer = _kept_by_layer(model, adapter, load)
    if checkpoint:
        shared_keys = 2 * model.kv_heads * model.head_dim * load.pairs * load.prefix
        kept = model.layers * (model.hidden * load.cells + shared_keys) * model.itemsize + RECOMPUTED * layer
    else:
        kept = model.layers * layer
    scored = 2 * load.targets * model.hidden * model.itemsize
    return Estimate(
        weights=model.weights,
        adapter=4 * FLOAT * adapter.numbers,
        kept=round(kept),
        working=round(scored + max(_logits(model, load), _backward_of_layer(model, load))),
    )


def uniform_load(pairs: int, length: int, response: int) -> Load:
    """Pairs whose sequences have ``length`` tokens, the last ``response`` of them the response; prompts are shared."""
    return Load(pairs, length - response, response, round_up(2 * pairs * response, 32))


def plain_weights(model: ModelSize, tied: bool, bits: int | None = None, group: int = 64) -> int:
    """Bytes of a Llama's weights, with 16 bits a number, or quantised with a 16-bit scale and bias per group."""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    block = model.hidden * (2 * q + 2 * kv + 3 * model.intermediate)
    numbers = model.layers * block + model.vocabulary * model.hidden * (1 if tied else 2)
    return numbers * 2 if bits is None else numbers * bits // 8 + numbers // group * 4


def _kept_by_layer(model: ModelSize, adapter: AdapterSize, load: Load) -> int:
    """Bytes: residual stream, q, k, v, feed-forward part, attention, inputs of the adapters, which are float32."""
    kv = model.kv_heads * model.head_dim
    numbers = 2 * model.hidden + model.heads * model.head_dim + 2 * kv + 4 * model.intermediate
    if model.itemsize < FLOAT:
        inputs = adapter.inputs * (FLOAT + 2 * adapter.dropout) + FLOAT * model.hidden
    elif adapter.dropout:
        inputs = adapter.inputs * (FLOAT + 1)
    else:
        inputs = adapter.distinct * FLOAT
    joined = 4 * kv * load.pairs * (load.prefix + load.rest) if load.prefix else 0
    return load.cells * (numbers * model.itemsize + inputs) + (sum(_scores(model, load)) + joined) * model.itemsize


def _scores(model: ModelSize, load: Load) -> tuple[int, int]:
    """Attention scores of the prefixes, and of what follows them."""
    after = 2 * load.rest * (load.prefix + load.rest)
    return model.heads * load.pairs * load.prefix**2, model.heads * load.pairs * after


def _logits(model: ModelSize, load: Load) -> float:
    """Logits in float32 with their gradient, and those of the chunks that are begun before the first one is freed."""
    first = min(load.targets, CHUNK)
    ahead = min(load.targets - first, CHUNKS_AHEAD * CHUNK)
    narrow = model.itemsize if model.itemsize < FLOAT else 0
    return model.vocabulary * (FLOAT * (LOGITS * first + LOGITS_AHEAD * ahead) + narrow * (first + ahead))


def _backward_of_layer(model: ModelSize, load: Load) -> float:
    positions = load.pairs * max(load.prefix, 2 * load.rest)
    hidden = LAYER_HIDDEN * model.hidden * (model.itemsize + FLOAT) / 2
    inner = LAYER_MLP * model.intermediate * model.itemsize
    return (hidden + inner) * positions + LAYER_SCORES * max(_scores(model, load)) * model.itemsize


@dataclass(frozen=True)
class Way:
    """A way to need less memory: the flags, and the peak with them."""

    flags: str
    bytes: int


def ways_to_fit(
    model: ModelSize, adapter: AdapterSize, load: Load, *, checkpoint: bool, accumulation: int, length: int
) -> Iterator[Way]:
    """Ways to need less memory, those that change least first.

    Args:
        model: The backbone.
        adapter: The adapter.
        load: The largest batch.
        checkpoint: Whether layers are computed again already.
        accumulation: Batches per step.
        length: The limit on the tokens of a sequence that is in force.
    """
    sizes = [pairs for pairs in range(load.pairs - 1, 0, -1) if load.pairs % pairs == 0]
    for again in [checkpoint] if checkpoint else [False, True]:
        for pairs in ([] if again == checkpoint else [load.pairs]) + sizes:
            flags = [] if pairs == load.pairs else [_smaller(pairs, accumulation * load.pairs // pairs)]
            flags += ["--grad-checkpoint"] if again != checkpoint else []
            yield Way(" ".join(flags), estimate(model, adapter, load.of(pairs), again).total)
    accumulated = [_smaller(1, accumulation * load.pairs)] if load.pairs > 1 else []
    flags = accumulated + ([] if checkpoint else ["--grad-checkpoint"])
    for divisor in (2, 4, 8):
        if length // divisor >= 64:
            shorter = estimate(model, adapter, load.of(1).shortened(1 / divisor), True)
            yield Way(" ".join([*flags, f"--max-seq-length {length // divisor}"]), shorter.total)


def _smaller(pairs: int, accumulation: int) -> str:
    return f"--batch-size {pairs} --grad-accumulation-steps {accumulation}"
