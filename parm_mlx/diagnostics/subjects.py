"""The models that are measured: random weights of a chosen size, or the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from parm_mlx.diagnostics.plan import HEAD, Size
from parm_mlx.guidance.loading import load_with_tokenizers, recorded_backbone
from parm_mlx.guidance.model import Guide, GuidedModel
from parm_mlx.guidance.prompts import encode
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.preference import Alpha, sample_dirichlet

GROUP = 64
TEXT = (
    "How do I keep a tomato plant alive on a small balcony? I water it every evening, the leaves turn yellow from "
    "below, and the fruit stays green. My neighbour says that the pot is too small, and the book wants more sun. "
)


@dataclass(frozen=True)
class Subjects:
    """What is measured.

    Attributes:
        guided: Base and guide, two models.
        text: Token ids that prompts are cut from, repeated as often as needed.
    """

    guided: GuidedModel
    text: tuple[int, ...]

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Prompts of so many tokens; each begins at another place in the text."""
        return [[self.text[(row + i) % len(self.text)] for i in range(length)] for row in range(count)]

    def alphas(self, count: int) -> list[Alpha]:
        """A preference for each of several sequences, all different; one alone gets the default."""
        if count == 1:
            return [self.guided.guide.alpha]
        drawn = sample_dirichlet(np.random.default_rng(0), 1.0, len(self.guided.objectives), count)
        return [tuple(row) for row in drawn.tolist()]


def random_llama(size: Size, seed: int, heads: int | None = None) -> nn.Module:
    """A Llama with random weights.

    Args:
        size: Its size.
        seed: Of the weights.
        heads: Number of attention heads; by default each has 64 dimensions.
    """
    mx.random.seed(seed)
    multiple = GROUP if size.bits else 32
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            intermediate_size=size.hidden * 8 // 3 // multiple * multiple,
            num_attention_heads=heads or size.hidden // HEAD,
            rms_norm_eps=1e-5,
            vocab_size=size.vocabulary,
            tie_word_embeddings=False,
        )
    )
    if size.bits:
        nn.quantize(model, GROUP, size.bits)
    model.eval()
    mx.eval(model.parameters())
    return model


def random_guide(model: nn.Module) -> Guide:
    """A guide of two objectives: random PBLoRA adapters (r1 = r2 = 4) on the query, key and value projections."""
    config = PBLoRAConfig(objectives=("a", "b"))
    attach(model, config)
    randomise_adapters(model)
    model.eval()
    return Guide(model, config)


def randomise_adapters(model: nn.Module) -> None:
    """Gives B, which is zero before training, small random numbers, so that the adapters change something."""
    for layer in adapted_layers(model).values():
        layer.b = 0.02 * mx.random.normal(layer.b.shape)
    mx.eval(model.parameters())


def random_subjects(size: Size) -> Subjects:
    """A base and a guide of one size, with different random weights."""
    base, guide = random_llama(size, 0), random_guide(random_llama(size, 1))
    return Subjects(GuidedModel(base, guide), tuple(range(min(100, size.vocabulary))))


def loaded_subjects(model: str | None, parm: Sequence[str], guide_model: str | None, beta: Sequence[float]) -> Subjects:
    """The user's own models.

    Args:
        model: Directory or hub id of the base; the backbone of the guide when left out.
        parm: Directories or hub ids of the adapters.
        guide_model: Backbone of the adapters; what they record when left out.
        beta: β, or one for each adapter.

    Raises:
        InputError: Something cannot be loaded.
    """
    base: str | Path = model or guide_model or recorded_backbone(parm[0])
    guided, tokenizer, _ = load_with_tokenizers(base, list(parm), guide_model, beta=beta)
    return Subjects(guided, tuple(encode(tokenizer, TEXT)))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights; arrays that it holds twice count once."""
    named: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum({id(array): array.nbytes for array in named.values()}.values())
