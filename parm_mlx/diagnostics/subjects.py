"""The models of a benchmark: random weights of a chosen size, or the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from parm_mlx.diagnostics.plan import HEAD, Size
from parm_mlx.errors import InputError
from parm_mlx.guidance.encoding import encode
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import Dequantize, load_draft, load_with_tokenizers
from parm_mlx.guidance.named import recorded_backbone
from parm_mlx.guidance.shared import SharedModel, weights_differ
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.machine import usable_memory
from parm_mlx.mlxlm import llama
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.preference import Alpha, sample_dirichlet

GROUP = 64
BASE_SEED, GUIDE_SEED = 0, 1
TEXT = (
    "How do I keep a tomato plant alive on a small balcony? I water it every evening, the leaves turn yellow from "
    "below, and the fruit stays green. My neighbour says that the pot is too small, and the book wants more sun. "
)


@dataclass(frozen=True)
class Subjects:
    """The models and the text of a benchmark."""

    guided: GuidedModel  # base and guide, two models
    text: tuple[int, ...]  # token ids that prompts are cut from, repeated if too short
    shared: SharedModel | None = None  # base and guide on the same weights, in one forward pass
    draft: nn.Module | None = None
    drafted: int = Drafting.tokens  # at a time

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Returns prompts of ``length`` tokens; each begins at another place in the text."""
        return [[self.text[(row + i) % len(self.text)] for i in range(length)] for row in range(count)]

    def alphas(self, count: int) -> list[Alpha]:
        """Returns a different preference for each sequence; the default for a single one."""
        if count == 1:
            return [self.guided.guide.alpha]
        drawn = sample_dirichlet(np.random.default_rng(0), 1.0, len(self.guided.objectives), count)
        return [tuple(row) for row in drawn.tolist()]


def random_llama(size: Size, seed: int, heads: int | None = None) -> nn.Module:
    """Makes a Llama with random weights; by default its attention heads have 64 dimensions each."""
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


def randomise_adapters(model: nn.Module) -> None:
    """Sets B, which is zero before training, to small random numbers, so that the adapters have an effect."""
    for layer in adapted_layers(model).values():
        layer.b = 0.02 * mx.random.normal(layer.b.shape)
    mx.eval(model.parameters())


def random_subjects(size: Size, drafted: int = Drafting.tokens) -> Subjects:
    """Makes a base and a guide of one size with different random weights, and the shared model of the guide.

    Raises:
        InputError: They do not fit in memory.
    """
    needed, memory = 2 * 4 * size.numbers / 1e9, usable_memory() / 1e9
    if needed > memory:
        raise InputError(
            f"two random models of this size need about {needed:.0f} GB, and there are {memory:.0f} GB of memory",
            hint="lower --hidden, --layers or --vocabulary",
        )
    base, backbone = random_llama(size, BASE_SEED), random_llama(size, GUIDE_SEED)
    config = PBLoRAConfig(objectives=("a", "b"))  # r1 = r2 = 4, on query, key and value projections
    attach(backbone, config)
    randomise_adapters(backbone)
    backbone.eval()
    guide = Guide(backbone, config)
    text = tuple(range(min(100, size.vocabulary)))
    return Subjects(GuidedModel(base, guide), text, SharedModel(guide), _first_quarter(base), drafted)


def _first_quarter(base: nn.Module) -> nn.Module:
    """Makes a draft model of the first quarter of the base's layers."""
    count = max(1, len(base.layers) // 4)
    kinds = base.args.layer_types[:count]
    draft = llama.Model(replace(base.args, num_hidden_layers=count, layer_types=kinds))
    draft.model.layers = base.model.layers[:count]
    draft.model.embed_tokens, draft.model.norm, draft.lm_head = base.model.embed_tokens, base.model.norm, base.lm_head
    draft.eval()
    return draft


def loaded_subjects(
    model: str | None,
    parm: Sequence[str],
    guide_model: str | None,
    beta: Sequence[float],
    draft_model: str | None = None,
    drafted: int = Drafting.tokens,
    dequantize: Dequantize = "auto",
) -> Subjects:
    """Loads the user's own models, by the names of the flags; with the shared model if weights are the same."""
    base: str | Path = model or guide_model or recorded_backbone(parm[0])
    guided, tokenizer, _ = load_with_tokenizers(
        base, list(parm), guide_model, beta=beta, share="off", dequantize=dequantize, across="off"
    )
    draft = load_draft(draft_model, tokenizer, base, dequantize) if draft_model else None
    shared = None
    if isinstance(guided.guide, Guide) and weights_differ(guided.base, guided.guide.model) is None:
        shared = SharedModel(guided.guide, guided.beta)
    return Subjects(guided, tuple(encode(tokenizer, TEXT)), shared, draft, drafted)


def weight_bytes(*models: nn.Module) -> int:
    """Returns the bytes of the weights of models; an array held twice counts once."""
    arrays: dict[int, int] = {}
    for model in models:
        named: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        arrays |= {id(array): array.nbytes for array in named.values()}
    return sum(arrays.values())
