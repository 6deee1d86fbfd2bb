"""Tiny random models of several families, and guided models made of them."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.pblora.targets import default_targets

VOCABULARY = 96
OBJECTIVES = ("helpful", "harmless")
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"tie_word_embeddings": False},
    "qwen2": COMMON | {"tie_word_embeddings": True},
    "gemma": COMMON | {"head_dim": 16},
    "gemma3_text": COMMON
    | {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "phi3": COMMON,
    "mixtral": COMMON | {"num_local_experts": 2},
    "gpt_neox": {
        "max_position_embeddings": 256,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
    },
    "gpt2": {
        "n_ctx": 256,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 256,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": VOCABULARY,
    },
}
# Families whose caches hold more than keys and values: recurrent states, lists, chunks.
FAMILIES |= {
    "mamba": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 8,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "vocab_size": VOCABULARY,
    },
    "jamba": {key: value for key, value in COMMON.items() if key != "num_hidden_layers"}
    | {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 256,
    },
    "falcon_h1": COMMON
    | {
        "head_dim": 16,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_n_heads": 4,
        "mamba_expand": 1,
        "lm_head_multiplier": 1.0,
    },
    "llama4": {
        "text_config": COMMON
        | {
            "model_type": "llama4",
            "num_hidden_layers": 4,
            "attention_bias": False,
            "attention_chunk_size": 8,
            "head_dim": 16,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 64,
            "max_position_embeddings": 256,
            "num_experts_per_tok": 1,
            "num_local_experts": 2,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "use_qk_norm": True,
        }
    },
}
TARGETS = {"mamba": ("in_proj",), "jamba": ("q_proj", "k_proj", "v_proj", "in_proj")}


def tiny_model(family: str = "llama", seed: int = 0, bits: int | None = None, **changes: Any) -> nn.Module:
    """A model with random weights, large enough that its distributions are far from uniform."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs(model_type=family, **FAMILIES[family] | changes))
    model.update(tree_map(lambda x: x + 0.1 * mx.random.normal(x.shape), model.parameters()))
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    model.eval()
    return model


def targets(family: str, model: nn.Module) -> tuple[str, ...]:
    """Layers to adapt: the family's default ones, or some where it has none."""
    return TARGETS.get(family) or default_targets(model)


def randomise(model: nn.Module, seed: int = 0, size: float = 0.3) -> None:
    """Gives the adapters of a model random weights, B too."""
    mx.random.seed(seed)
    for layer in adapted_layers(model).values():
        for key in layer.tensors:
            layer[key] = size * mx.random.normal(layer[key].shape)
    mx.eval(model.parameters())


def tiny_guide(
    family: str = "llama",
    seed: int = 1,
    bits: int | None = None,
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Guide:
    """A guide with random adapters on the family's default targets."""
    model = tiny_model(family, seed, bits, **(changes or {}))
    config = PBLoRAConfig(**{"objectives": OBJECTIVES, "target_modules": targets(family, model), **settings})
    attach(model, config)
    randomise(model, seed)
    model.eval()
    return Guide(model, config)


def tiny_guided(family: str = "llama", bits: int | None = None, beta: float = 1.0) -> GuidedModel:
    """A base and a guide of one family, with different weights."""
    return GuidedModel(tiny_model(family, 0, bits), tiny_guide(family, 1, bits), beta)


def tiny_shared(family: str = "llama", bits: int | None = None, beta: float = 1.0) -> SharedModel:
    """A guide on its own backbone, computed in one forward pass."""
    return SharedModel(tiny_guide(family, 1, bits), beta)


def random_pairs(*sizes: tuple[int, int, int]) -> list[TokenPair]:
    """Pairs of so many prompt tokens and so many tokens in each response."""
    rng = np.random.default_rng(0)

    def one(prompt: int, *responses: int) -> TokenPair:
        start = rng.integers(0, VOCABULARY, prompt)
        ids = [np.concatenate([start, rng.integers(0, VOCABULARY, n)]).astype(np.int32) for n in responses]
        return TokenPair((TokenRow(ids[0], prompt), TokenRow(ids[1], prompt)), np.array([0, 1], np.int8), "x")

    return [one(*size) for size in sizes]
