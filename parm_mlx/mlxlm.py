"""The only module that touches the parts of mlx-lm that are not its public interface.

tests/test_mlxlm.py is the contract for what is used here, so that an mlx-lm upgrade fails there first.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import KVCache, RotatingKVCache, _BaseCache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_model, load_tokenizer, save_config, save_model

from parm_mlx.errors import ModelError

__all__ = [
    "PreferenceCache",
    "PrefixCache",
    "TokenizerWrapper",
    "TrainingCallback",
    "attention_windows",
    "context_length",
    "filter_logprobs",
    "load_tokenizer_alone",
    "load_weights_and_tokenizer",
    "make_prompt_cache",
    "reporting_callback",
    "rewind",
    "save_like",
    "trunk_and_output_layer",
    "wait_for_generation",
]

Layer = Callable[[mx.array], mx.array]

NO_TOKEN = -1


class PreferenceCache(_BaseCache):
    """The preference vectors of a batch of sequences, as an entry of their prompt cache.

    mlx-lm merges, extends, filters and splits it together with the key-value caches, so every sequence keeps its own α.

    Args:
        alpha: (B, k), one preference vector per sequence.
    """

    def __init__(self, alpha: mx.array) -> None:
        self.alpha = alpha
        self.first_token: mx.array | None = None
        self._bound: Any = None

    def bound(self, bind: Callable[[mx.array], Any]) -> Any:
        """What ``bind`` makes of α; computed once and kept until the batch changes."""
        if self._bound is None:
            self._bound = bind(self.alpha)
        return self._bound

    def replace_first_token(self, token: int) -> None:
        """Has the guide read ``token`` in place of the next input token.

        Prompts of base and guide may end in different tokens; the generated tokens that follow are the same.
        """
        self.first_token = mx.full((self.alpha.shape[0],), token, dtype=mx.int32)

    def take_inputs(self, inputs: mx.array) -> mx.array:
        """The tokens that the guide reads where the base reads ``inputs`` (B, L)."""
        if self.first_token is None:
            return inputs
        token, self.first_token = self.first_token[:, None].astype(inputs.dtype), None
        first = mx.where(token == mx.array(NO_TOKEN).astype(inputs.dtype), inputs[:, :1], token)
        return mx.concatenate([first, inputs[:, 1:]], axis=1)

    def _take(self, alpha: mx.array, first_token: mx.array | None) -> None:
        self.alpha, self.first_token, self._bound = alpha, first_token, None

    def _first_tokens(self) -> mx.array:
        if self.first_token is not None:
            return self.first_token
        return mx.full((self.alpha.shape[0],), NO_TOKEN, dtype=mx.int32)

    @property
    def state(self) -> list[mx.array]:
        """The arrays that describe the entry."""
        return [self.alpha] if self.first_token is None else [self.alpha, self.first_token]

    @state.setter
    def state(self, value: Sequence[mx.array]) -> None:
        self._take(value[0], value[1] if len(value) > 1 else None)

    def is_trimmable(self) -> bool:
        """A preference holds for any number of tokens."""
        return True

    def trim(self, n: int) -> int:
        """Takes part in trimming the other entries; says that all n tokens went."""
        return n

    def filter(self, batch_indices: Any) -> None:
        """Keeps the sequences at these indices, in place."""
        rows = mx.array(batch_indices)
        self._take(self.alpha[rows], None if self.first_token is None else self.first_token[rows])

    def extend(self, other: "PreferenceCache") -> None:
        """Adds the sequences of another entry, in place."""
        merged = self.merge([self, other])
        self._take(merged.alpha, merged.first_token)

    def extract(self, idx: int) -> "PreferenceCache":
        """The entry of one sequence."""
        row = PreferenceCache(self.alpha[idx : idx + 1])
        row.first_token = None if self.first_token is None else self.first_token[idx : idx + 1]
        return row

    @classmethod
    def merge(cls, caches: "Sequence[PreferenceCache]") -> "PreferenceCache":
        """One entry for the sequences of all."""
        merged = cls(mx.concatenate([cache.alpha for cache in caches]))
        if any(cache.first_token is not None for cache in caches):
            merged.first_token = mx.concatenate([cache._first_tokens() for cache in caches])
        return merged

    def prepare(self, **_: Any) -> None:
        """Padding does not concern the preference."""

    def finalize(self) -> None:
        """Padding does not concern the preference."""

    def empty(self) -> bool:
        """Never: there is always a preference."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of α."""
        return int(self.alpha.nbytes)

    def __deepcopy__(self, memo: Any) -> "PreferenceCache":
        return copy(self)


class PrefixCache:
    """Keys and values of one layer for prefixes that several rows continue, for use inside ``value_and_grad``.

    The first pass reads the prefixes of B pairs, right-padded. The second pass, with the :meth:`fork` of the cache,
    reads what follows them: rows b and B + b continue prefix b at its own position and see nothing of its padding.

    Args:
        lengths: Length of each prefix, without padding.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.forked = False
        self.windows: set[int | None] = set()

    def fork(self) -> "PrefixCache":
        """The cache for the rows that continue the prefixes that this one holds."""
        rows = copy(self)
        rows.forked = True
        return rows

    @property
    def even(self) -> bool:
        """Whether all prefixes have one length, so that there is no padding to hide."""
        return len(set(self.lengths)) == 1

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token, or of the next token of each row."""
        if not self.forked:
            return 0
        return self.lengths[0] if self.even else mx.array(self.lengths * 2)

    @property
    def state(self) -> list[mx.array]:
        """The keys and values of the prefixes."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @state.setter
    def state(self, value: Sequence[mx.array]) -> None:
        self.keys, self.values = value or (None, None)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values that a pass attends to; (rows, heads, tokens, dimensions) in and out."""
        if not self.forked:
            self.keys, self.values = keys, values
            return keys, values
        assert self.keys is not None
        assert self.values is not None
        return _continued(self.keys, keys), _continued(self.values, values)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any
    ) -> str | mx.array | None:
        """The attention mask for N tokens: causal, within the window, and blind to the padding of prefixes."""
        self.windows.add(window_size)
        if window_size is None and not return_array and (self.even or not self.forked):
            return "causal"
        if not self.forked:
            at = mx.arange(N)
            return _visible(at[:, None], at[None], window_size)
        lengths = mx.array(self.lengths * 2)[:, None, None, None]
        padded = max(self.lengths)
        before, after = mx.arange(padded), lengths + mx.arange(N)
        shape = (*lengths.shape[:3], padded)
        seen = mx.concatenate([mx.broadcast_to(before, shape), after], axis=-1)
        real = mx.concatenate([before < lengths, mx.ones(after.shape, mx.bool_)], axis=-1)
        return _visible(after.swapaxes(-1, -2), seen, window_size) & real


def _visible(query: mx.array, key: mx.array, window_size: int | None) -> mx.array:
    mask = query >= key
    return mask if window_size is None else mask & (query < key + window_size)


def _continued(prefix: mx.array, rest: mx.array) -> mx.array:
    """Prefixes (B, H, P, D) before the rest of two rows each (2B, H, R, D): (2B, H, P + R, D)."""
    return mx.concatenate([mx.concatenate([prefix, prefix]), rest], axis=2)


def attention_windows(model: nn.Module) -> set[int | None] | None:
    """The window sizes of a model's attention layers, None standing for no window.

    Returns:
        The sizes, or None if some layer keeps anything but keys and values.
    """
    windows: set[int | None] = set()
    for entry in make_prompt_cache(model):
        if type(entry) is KVCache:
            windows.add(None)
        elif type(entry) is RotatingKVCache and entry.keep == 0:
            windows.add(entry.max_size)
        else:
            return None
    return windows


def rewind(cache: list[Any], tokens: int) -> bool:
    """Removes the last tokens from a prompt cache, in place.

    Returns:
        Whether all of them were removed; a cache that cannot be trimmed is left as it was.
    """
    trimmed: Any = trim_prompt_cache(cache, tokens) if tokens else 0
    return bool(trimmed == tokens)


def wait_for_generation() -> None:
    """Waits for what mlx-lm's generators compute ahead of the token that they return."""
    mx.synchronize(generation_stream)


def filter_logprobs(logprobs: mx.array, *, top_p: float, min_p: float, top_k: int) -> mx.array:
    """Applies nucleus, minimum-probability and top-k filters, in mlx-lm's order."""
    if 0 < top_p < 1:
        logprobs = apply_top_p(logprobs, top_p)
    if min_p > 0:
        logprobs = apply_min_p(logprobs, min_p)
    if top_k > 0:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs


def load_tokenizer_alone(path: Path) -> TokenizerWrapper:
    """Loads the tokenizer of a model directory, the same as with its weights.

    Raises:
        ModelError: The directory holds no tokenizer that mlx-lm can load.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory: config.json is missing")
    _check_tokenizer(path)
    try:
        tokenizer: TokenizerWrapper = load_tokenizer(path, eos_token_ids=load_config(path).get("eos_token_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the tokenizer of {path} cannot be loaded: {reason[0]}") from error
    return tokenizer


def _check_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ModelError(f"{path} holds no tokenizer")


def load_weights_and_tokenizer(path: Path, lazy: bool = False) -> tuple[nn.Module, TokenizerWrapper]:
    """Loads an MLX (or unquantised Hugging Face) model directory.

    Raises:
        ModelError: The directory holds no model that mlx-lm can load.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory: config.json is missing")
    if not any(path.glob("model*.safetensors")):
        found = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in path.glob(pattern))
        extra = f" (found {', '.join(found)}, which are not loaded)" if found else ""
        raise ModelError(f"{path} holds no model*.safetensors{extra}")
    _check_tokenizer(path)
    try:
        model, config = load_model(path, lazy=lazy)
        tokenizer = load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path} cannot be loaded: {reason[0]}") from error
    # Transformers would warn of long sequences, in words about indexing errors that MLX does not have.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return model, tokenizer


def context_length(model: nn.Module) -> int | None:
    """Most tokens that a model was made for, as its config says; None where it does not."""
    arguments: Any = getattr(model, "args", None)
    texts = getattr(arguments, "text_config", None) or {}
    length = getattr(arguments, "max_position_embeddings", None) or texts.get("max_position_embeddings")
    return length if isinstance(length, int) else None


class TrainingCallback(Protocol):
    """What mlx-lm tells about a training."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """Takes the numbers of the training; ``iteration`` is the step."""
        ...

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        """Takes the numbers of a validation; ``iteration`` is the step."""
        ...


def reporting_callback(trackers: str, *, project_name: str, log_dir: str, config: dict[str, Any]) -> TrainingCallback:
    """Starts experiment trackers.

    Args:
        trackers: Their names, comma-separated: wandb, swanlab.
        project_name: Project that the run is shown in.
        log_dir: Where their files go; the run is named after its last part.
        config: The settings of the run.
    """
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    started: Any = get_reporting_callbacks
    callback: TrainingCallback = started(trackers, project_name, log_dir, config)
    return callback


def trunk_and_output_layer(model: nn.Module) -> tuple[Layer, Layer] | None:
    """The part of a model up to its last hidden states, and its output layer, tied or not.

    Returns:
        The two parts by the names that most families use, or None. A family may do more after the output layer, so that
        the parts together need not be the model.
    """
    trunk = getattr(model, "model", None)
    if not isinstance(trunk, nn.Module) or not callable(trunk):
        return None
    output_layer = model.get("lm_head")
    if output_layer is None:
        output_layer = getattr(trunk.get("embed_tokens"), "as_linear", None)
    return None if output_layer is None else (trunk, output_layer)


def save_like(path: Path, model: nn.Module, source: Path) -> None:
    """Writes a model beside the config and the tokenizer of the directory that it was loaded from.

    Layers that were quantised there may be plain now.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for key in ("quantization", "quantization_config"):
        if isinstance(config.get(key), dict):
            config[key] = {name: value for name, value in config[key].items() if name not in plain}
    save_model(path, model)
    save_config(config, path / "config.json")
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") and not (path / file.name).exists():
            shutil.copy(file, path)
