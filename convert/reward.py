"""Reward models: transformers' sequence classifiers of decoders and Beaver's score models to MLX."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from parm_mlx.convert.detect import Source
from parm_mlx.convert.model import Quantization, check_numbers, check_request, check_sizes
from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import load_backbone, save_converted, weight_files
from parm_mlx.outputs import new_directory
from parm_mlx.rewards.model import HEAD_FILE, RewardSettings

_HEADS = ("score", "score_head", "normalizer")
_DIRECTION = {True: "lower is better, so scores are negated", False: "higher is better"}


def convert_reward_model(
    source: Source,
    out: Path,
    *,
    name: str,
    lower_is_better: bool | None = None,
    quantization: Quantization | None = None,
    dtype: str | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Writes a reward model as :mod:`parm_mlx.rewards.model` reads it.

    Args:
        source: A ``…ForSequenceClassification`` or ``…ForScore``.
        out: The directory to write.
        name: What the user calls the source; tells a cost from a reward when nothing else does.
        lower_is_better: Whether the outputs are costs.
        quantization: How to quantise the backbone; not at all when left out.
        dtype: Type of the backbone's plain weights; what its config says when left out. The head stays in float32.
        force: Replace an existing model.
        say: Where notes go.

    Raises:
        ModelError: The model is not readable, not supported by mlx-lm, or cannot be quantised as asked.
        OutputError: ``out`` exists or cannot be written.
        RunError: Writing failed.
    """
    check_request(source, quantization, dtype)
    _check_weights(source.path)
    try:
        model, tokenizer, found = load_backbone(source.path, _HEADS, lazy=True)
    except ModelError as error:
        raise ModelError(
            str(error), hint=error.hint or f"where transformers can load it, hf:{name} scores with it as it is"
        ) from None
    if quantization is not None:
        check_sizes(model, quantization.effective_group_size(), source.path, say)
    is_score = any(key.startswith("score_head.") for key in found)
    prefix = "score_head." if is_score else "score."
    head = {
        key.removeprefix(prefix): value.astype(mx.float32) for key, value in found.items() if key.startswith(prefix)
    }
    if "weight" not in head or not head.keys() <= {"weight", "bias"} or head["weight"].ndim != 2:
        raise ModelError(f"model {source.path} has no linear score head: {', '.join(sorted(head)) or 'no'} tensors")
    settings = _settings(source, is_score, head["weight"].shape[0], name, lower_is_better, say)
    dtype = check_numbers(source, dtype, say)
    given = (quantization.mode, quantization.bits, quantization.group_size) if quantization is not None else None
    with new_directory(out, force, [source.path]) as partial:
        mx.save_safetensors(str(partial / HEAD_FILE), head, metadata={"format": "mlx"})
        settings.save(partial)
        save_converted(partial, model, tokenizer, source.path, dtype, given)


def _check_weights(path: Path) -> None:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled and not any(path.glob("*.safetensors")):
        raise ModelError(
            f"model {path} holds no model*.safetensors (found {', '.join(pickled)}): pickled weights can run any code "
            "and are not read",
            hint="docs/rewards.md shows how to write them as safetensors",
        )
    weight_files(path)


def _settings(
    source: Source, is_score: bool, outputs: int, name: str, lower_is_better: bool | None, say: Callable[[str], None]
) -> RewardSettings:
    config = source.config
    if config.get("do_normalize"):
        raise ModelError(f"model {source.path} normalises its scores (do_normalize), which is not supported")
    lower = _is_cost(name, str(config.get("score_type")), lower_is_better, say)
    if is_score and outputs == 1:
        labels: tuple[str, ...] = ("cost" if lower else "reward",)
    else:
        names = config.get("id2label") or {}
        labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(outputs))
    say(f"outputs {', '.join(labels)}; {_DIRECTION[lower]}")
    return RewardSettings(
        kind="score" if is_score else "sequence-classification",
        labels=labels,
        lower_is_better=lower,
        chat_template="beaver" if is_score else None,
        pad_token_id=None if is_score else config.get("pad_token_id"),
    )


def _is_cost(name: str, score_type: str, given: bool | None, say: Callable[[str], None]) -> bool:
    """Whether lower is better: what is given, else what the name says, else what Beaver's config says."""
    if given is not None:
        return given
    last = Path(name).name.lower()
    for text, what in ((last, "its name"), (score_type, "its config")):
        cost, reward = "cost" in text, "reward" in text
        if cost != reward:
            other = "--higher-is-better" if cost else "--lower-is-better"
            say(f"taken for a {'cost' if cost else 'reward'} by {what}; {other} says otherwise")
            return cost
    say("neither its name nor its config says cost or reward: taken for a reward; --lower-is-better says otherwise")
    return False
