"""The memory that a run needs, before it starts: its model, adapter and largest batch against the machine."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from parm_mlx.data.tokenize import TokenPair
from parm_mlx.pblora.targets import linear_dims
from parm_mlx.training.batching import make_batch
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.memory import AdapterSize, Estimate, Load, ModelSize, estimate, ways_to_fit
from parm_mlx.training.packing import Layout
from parm_mlx.training.report import Progress
from parm_mlx.training.response_logprobs import ResponseScorer

# The names that families give to their sizes.
NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocabulary": ("vocab_size",),
}


class Footprint:
    """The sizes of a run.

    Args:
        scorer: Holds the model, with its adapter attached.
        config: The settings.
        pairs: The training pairs.
        at_once: How many of them are computed at once in this process.

    Attributes:
        estimate: The estimated peak; None for a family whose sizes are not known.
    """

    def __init__(self, scorer: ResponseScorer, config: TrainConfig, pairs: Sequence[TokenPair], at_once: int) -> None:
        self.config = config
        self.model = model_size(scorer.model)
        self.adapter = adapter_size(scorer.model, config.dropout)
        self.load = largest_load(scorer, pairs, at_once)
        self.estimate: Estimate | None = None
        if self.model is not None:
            self.estimate = estimate(self.model, self.adapter, self.load, config.grad_checkpoint)

    def announce(self, progress: Progress, available: int) -> None:
        """Tells the estimate before training starts, and what to change if it does not fit.

        Args:
            progress: Who is told.
            available: Bytes that the machine has for it.
        """
        if self.model is None or self.estimate is None:
            return
        total = self.estimate.total
        if total <= available:
            progress.note(f"memory: about {gigabytes(total)} at the peak; this machine has {gigabytes(available)}")
            return
        ways = list(
            ways_to_fit(
                self.model,
                self.adapter,
                self.load,
                checkpoint=self.config.grad_checkpoint,
                accumulation=self.config.grad_accumulation_steps,
                length=self.config.max_seq_length,
            )
        )
        fits = next((way for way in ways if way.bytes <= available), None)
        best = fits or min(ways, key=lambda way: way.bytes, default=None)
        advice = [f"try {best.flags}: about {gigabytes(best.bytes)}"] if best and best.bytes < total else []
        if not fits:
            weights = gigabytes(self.estimate.weights)
            advice.append(f"the weights alone take {weights}: a smaller backbone, or one in fewer bits, is needed")
        needed = f"about {gigabytes(total)} of memory are needed, and this machine has {gigabytes(available)}"
        progress.warn("; ".join([needed, *advice]))

    def measured(self) -> str:
        """The peak that MLX measured, beside the estimate."""
        text = f"memory: {gigabytes(mx.get_peak_memory())} at the peak"
        return text if self.estimate is None else f"{text}, estimated {gigabytes(self.estimate.total)}"


def model_size(model: nn.Module) -> ModelSize | None:
    """The sizes of an mlx-lm model with its weights, adapter not counted; None if its family names them otherwise."""
    arguments: Any = getattr(model, "args", None)
    found = {
        key: next((value for name in names if isinstance(value := getattr(arguments, name, None), int)), None)
        for key, names in NAMES.items()
    }
    hidden, heads, vocabulary = found["hidden"], found["heads"], found["vocabulary"]
    if hidden is None or heads is None or vocabulary is None:
        return None
    experts = getattr(arguments, "num_experts_per_tok", None) or 1
    parameters = _tensors(model.parameters())
    floating = [
        tensor for name, tensor in parameters.items() if "norm" in name and mx.issubdtype(tensor.dtype, mx.floating)
    ]
    return ModelSize(
        hidden=hidden,
        layers=len(model.layers),
        heads=heads,
        kv_heads=getattr(arguments, "num_key_value_heads", None) or heads,
        head_dim=getattr(arguments, "head_dim", None) or hidden // heads,
        intermediate=(found["intermediate"] or 4 * hidden) * experts,
        vocabulary=vocabulary,
        itemsize=max((tensor.dtype.size for tensor in floating), default=2),
        weights=sum(tensor.nbytes for tensor in parameters.values())
        - sum(tensor.nbytes for tensor in _tensors(model.trainable_parameters()).values()),
    )


def adapter_size(model: nn.Module, dropout: float) -> AdapterSize:
    """The sizes of the adapter on a model."""
    inputs: list[int] = []
    distinct: dict[tuple[int, str, int], None] = {}
    for number, block in enumerate(model.layers):
        for path, module in block.named_modules():
            if isinstance(linear := module.get("linear"), nn.Module):
                size = linear_dims(linear)[1]
                inputs.append(size)
                distinct[number, path.rpartition(".")[0], size] = None
    layers = len(model.layers)
    return AdapterSize(
        numbers=sum(tensor.size for tensor in _tensors(model.trainable_parameters()).values()),
        inputs=sum(inputs) // layers,
        distinct=sum(size for _, _, size in distinct) // layers,
        dropout=dropout > 0,
    )


def largest_load(scorer: ResponseScorer, pairs: Sequence[TokenPair], at_once: int) -> Load:
    """The longest pairs at once."""
    longest = sorted(pairs, key=len)[-at_once:]
    layout: Layout = scorer.layout(make_batch(longest))
    return Load(len(longest), layout.prefixes.shape[1], layout.inputs.shape[1], layout.targets.size)


def _tensors(parameters: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(parameters))


def gigabytes(size: int) -> str:
    """A size in GB (10⁹ bytes)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e9:.2f} GB"
