"""The models that are measured: random weights of a chosen size, or the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from parm_mlx.diagnostics.plan import HEAD, Size
from parm_mlx.errors import InputError
from parm_mlx.guidance.guided import Guide, GuidedModel
from parm_mlx.guidance.loading import load_draft, load_with_tokenizers, recorded_backbone
from parm_mlx.guidance.prompts import encode
from parm_mlx.guidance.shared import SharedModel, weights_differ
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.machine import usable_memory
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
    """What is measured.

    Attributes:
        guided: Base and guide, two models.
        text: Token ids that prompts are cut from, repeated as often as needed.
        shared: A guide on the base's own weights, both in one forward pass.
        draft: A draft model.
        drafted: Tokens drafted at a time.
    """

    guided: GuidedModel
    text: tuple[int, ...]
    shared: SharedModel | None = None
    draft: nn.Module | None = None
    drafted: int = Drafting.tokens

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


def random_draft(base: nn.Module) -> nn.Module:
    """A draft model: a quarter of the base's layers, with the base's weights."""
    count = max(1, len(base.layers) // 4)
    kinds = base.args.layer_types[:count]
    draft = llama.Model(replace(base.args, num_hidden_layers=count, layer_types=kinds))
    draft.model.layers = base.model.layers[:count]
    draft.model.embed_tokens, draft.model.norm, draft.lm_head = base.model.embed_tokens, base.model.norm, base.lm_head
    draft.eval()
    return draft


def random_subjects(size: Size, drafted: int = Drafting.tokens) -> Subjects:
    """A base and a guide of one size, with different random weights; the guide alone makes the shared model.

    Args:
        size: Of both.
        drafted: Tokens drafted at a time.

    Raises:
        InputError: They do not fit in the memory.
    """
    needed = 2 * 4 * size.numbers
    if needed > usable_memory():
        raise InputError(
            f"two random models of this size need about {needed / 1e9:.0f} GB, and there are "
            f"{usable_memory() / 1e9:.0f} GB of memory",
            hint="lower --hidden, --layers or --vocabulary",
        )
    base, guide = random_llama(size, BASE_SEED), random_guide(random_llama(size, GUIDE_SEED))
    text = tuple(range(min(100, size.vocabulary)))
    return Subjects(GuidedModel(base, guide), text, SharedModel(guide), random_draft(base), drafted)


def loaded_subjects(
    model: str | None,
    parm: Sequence[str],
    guide_model: str | None,
    beta: Sequence[float],
    draft_model: str | None = None,
    drafted: int = Drafting.tokens,
) -> Subjects:
    """The user's own models; the shared model is among them where base and guide stand on the same weights.

    Args:
        model: Directory or hub id of the base; the backbone of the guide when left out.
        parm: Directories or hub ids of the adapters.
        guide_model: Backbone of the adapters; what they record when left out.
        beta: β, or one for each adapter.
        draft_model: Directory or hub id of a draft model.
        drafted: Tokens drafted at a time.

    Raises:
        InputError: Something cannot be loaded.
    """
    base: str | Path = model or guide_model or recorded_backbone(parm[0])
    guided, tokenizer, _ = load_with_tokenizers(base, list(parm), guide_model, beta=beta, share="off")
    draft = load_draft(draft_model, tokenizer, base) if draft_model else None
    shared = None
    if isinstance(guided.guide, Guide) and weights_differ(guided.base, guided.guide.model) is None:
        shared = SharedModel(guided.guide, guided.beta)
    return Subjects(guided, tuple(encode(tokenizer, TEXT)), shared, draft, drafted)


def weight_bytes(*models: nn.Module) -> int:
    """Bytes of the weights of models; arrays that they hold twice count once."""
    arrays: dict[int, int] = {}
    for model in models:
        named: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        arrays |= {id(array): array.nbytes for array in named.values()}
    return sum(arrays.values())
