"""Will it fit? Weights and prompt caches against the memory of the device, before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parm_mlx.files import fetched_size
from parm_mlx.machine import usable_memory, uses_linux_cpu
from parm_mlx.mlxlm import config_dtype, config_levels, is_quantized, read_config, weight_files

CONTEXT = 4096  # tokens that the caches are counted with, if the models read so many


def misfit(
    models: Sequence[Path], sequences: int = 1, kv_bits: int | None = None, max_kv_size: int | None = None
) -> str | None:
    """Returns what a user should know where models do not fit into the memory, or None.

    Args:
        models: Directories of the base and of every guide's backbone; one of both is loaded once and has two caches.
        sequences: Answers that are generated at the same time.
        kv_bits: Bits of the caches, where they are quantised.
        max_kv_size: Most tokens that the caches hold.
    """
    weights = sum(weight_bytes(path) for path in {path.resolve() for path in models})
    configs = [read_config(path) for path in models]
    context = min(
        max_kv_size or CONTEXT,
        *(int(_number(config, "max_position_embeddings") or max_kv_size or CONTEXT) for config in configs),
    )
    caches = sequences * context * sum(map(cache_bytes, configs))
    if kv_bits is not None:
        caches = caches * kv_bits // (32 if uses_linux_cpu() else 16)
    usable = usable_memory()
    if weights + caches <= usable:
        return None
    return (
        f"memory: weights of {_gigabytes(weights)} and {_gigabytes(caches)} of caches for {context} tokens do not fit "
        f"into {_gigabytes(usable)}; fewer bits (parm-mlx convert -q, --kv-bits), a smaller guide, a shorter context "
        "(--max-kv-size), or one model for both (--share) need less"
    )


def fetching(source: str | Path) -> str | None:
    """Returns what a user should know before a model or adapter is fetched; None where none is."""
    size = fetched_size(source)
    if size is None:
        return None
    usable = usable_memory()
    unfit = f"; warning: this machine has {_gigabytes(usable)} for weights and caches" if size > usable else ""
    return f"fetching {source} from the hub: {_gigabytes(size)}{unfit}"


def weight_bytes(path: Path) -> int:
    """Returns the bytes that a model's weights take: those of its files, or as float32 where MLX uses a Linux CPU."""
    size = sum(file.stat().st_size for file in weight_files(path))
    widened = uses_linux_cpu() and not is_quantized(path) and config_dtype(read_config(path)) in ("float16", "bfloat16")
    return 2 * size if widened else size


def cache_bytes(config: dict[str, Any]) -> int:
    """Returns the bytes of keys and values of one token in all layers; 0 where the config does not say."""
    layers, heads = _number(config, "num_hidden_layers"), _number(config, "num_attention_heads")
    kept = _number(config, "num_key_value_heads") or heads
    width = _number(config, "head_dim") or (_number(config, "hidden_size") // heads if heads else 0)
    return 2 * layers * kept * width * (4 if uses_linux_cpu() else 2)


def _number(config: dict[str, Any], name: str) -> int:
    found = (level.get(name) for level in config_levels(config) if isinstance(level, dict))
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
