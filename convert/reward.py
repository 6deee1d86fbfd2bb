"""Reward models: transformers' sequence classifiers of decoders, and Beaver's score models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.convert.detect import Source
from parm_mlx.errors import ModelError
from parm_mlx.files import pickled_weights
from parm_mlx.mlxlm import TokenizerWrapper, load_backbone, weight_files
from parm_mlx.rewards.model import HEAD_FILE, RewardSettings

_HEADS = ("score", "score_head", "normalizer")
_DIRECTION = {True: "lower is better, so scores are negated", False: "higher is better"}


@dataclass(frozen=True)
class Head:
    """The linear head of a reward model and its settings."""

    tensors: Mapping[str, mx.array]
    settings: RewardSettings

    def save(self, directory: Path) -> None:
        """Writes both as :mod:`parm_mlx.rewards.model` reads them."""
        mx.save_safetensors(str(directory / HEAD_FILE), dict(self.tensors), metadata={"format": "mlx"})
        self.settings.save(directory)


def load_reward_model(
    source: Source, lower_is_better: bool | None, say: Callable[[str], None]
) -> tuple[nn.Module, TokenizerWrapper, Head]:
    """Loads a reward model; weights are read when they are used.

    Args:
        source: A ``…ForSequenceClassification`` or ``…ForScore``.
        lower_is_better: Whether the outputs are costs; its name or its config says if None.
        say: Takes notes for the user.

    Returns:
        The backbone without an output layer, its tokenizer, and the head in float32.

    Raises:
        ModelError: The model is not readable or not supported.
    """
    _check_weights(source.path)
    try:
        model, tokenizer, found = load_backbone(source.path, _HEADS, lazy=True)
    except ModelError as error:
        hint = error.hint or f"where transformers can load it, hf:{source.name} scores with it as it is"
        raise ModelError(str(error), hint=hint) from None
    is_score = any(key.startswith("score_head.") for key in found)
    prefix = "score_head." if is_score else "score."
    tensors = {
        key.removeprefix(prefix): value.astype(mx.float32) for key, value in found.items() if key.startswith(prefix)
    }
    if "weight" not in tensors or not tensors.keys() <= {"weight", "bias"} or tensors["weight"].ndim != 2:
        listed = ", ".join(sorted(tensors)) or "no"
        raise ModelError(f"model {source.path} has no linear score head: {listed} tensors")
    return model, tokenizer, Head(tensors, _settings(source, is_score, tensors, lower_is_better, say))


def _check_weights(path: Path) -> None:
    pickled = pickled_weights(path)
    if pickled and not any(path.glob("*.safetensors")):
        raise ModelError(
            f"model {path} holds no model*.safetensors (found {pickled}): pickled weights can run any code "
            "and are not read",
            hint="docs/rewards.md shows how to write them as safetensors",
        )
    weight_files(path)


def _settings(
    source: Source,
    is_score: bool,
    head: Mapping[str, mx.array],
    lower_is_better: bool | None,
    say: Callable[[str], None],
) -> RewardSettings:
    config = source.config
    if config.get("do_normalize"):
        raise ModelError(f"model {source.path} normalises its scores (do_normalize), which is not supported")
    lower = _is_cost(source, say) if lower_is_better is None else lower_is_better
    outputs = head["weight"].shape[0]
    if is_score and outputs == 1:
        labels: tuple[str, ...] = ("cost" if lower else "reward",)
    else:
        names: Any = config.get("id2label")
        names = names if isinstance(names, dict) else {}
        labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(outputs))
    say(f"outputs {', '.join(labels)}; {_DIRECTION[lower]}")
    return RewardSettings(
        kind="score" if is_score else "sequence-classification",
        labels=labels,
        lower_is_better=lower,
        chat_template="beaver" if is_score else None,
        pad_token_id=None if is_score else config.get("pad_token_id"),
    )


def _is_cost(source: Source, say: Callable[[str], None]) -> bool:
    """Whether lower is better: its name says it, or else Beaver's config."""
    name, score_type = Path(source.name).name.lower(), str(source.config.get("score_type"))
    for text, what in ((name, "its name"), (score_type, "its config")):
        cost, reward = "cost" in text, "reward" in text
        if cost != reward:
            other = "--higher-is-better" if cost else "--lower-is-better"
            say(f"taken for a {'cost' if cost else 'reward'} by {what}; {other} says otherwise")
            return cost
    say("neither its name nor its config says cost or reward: taken for a reward; --lower-is-better says otherwise")
    return False
