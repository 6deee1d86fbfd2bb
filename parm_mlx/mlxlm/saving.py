"""Writes models as directories with which plain mlx-lm computes the same."""

import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import create_model_card, quantize_model, save_config, save_model

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm.models import config_of, template_beside
from parm_mlx.mlxlm.settings import CONFIG_FILE, config_dtype, record_dtype

_COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_MORE_TEMPLATES = "additional_chat_templates"
_GENERATION_CONFIG = "generation_config.json"


def save_like(path: Path, model: nn.Module, source: Path) -> None:
    """Writes a model to ``path`` with the tokenizer of the directory that it was loaded from.

    Layers that were quantised there may be plain now.
    """
    config = config_of(model)
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for key in ("quantization", "quantization_config"):
        if isinstance(config.get(key), dict):
            config[key] = {name: value for name, value in config[key].items() if name not in plain}
    save_model(path, model)
    _save_config(config, model, path)
    for file in source.iterdir():
        of_weights = file.name.endswith(".index.json") or file.name == "hf_quant_config.json"
        if file.suffix in _COPIED and not of_weights and not (path / file.name).exists():
            shutil.copy(file, path)
    if (source / _MORE_TEMPLATES).is_dir():
        shutil.copytree(source / _MORE_TEMPLATES, path / _MORE_TEMPLATES)
    template = template_beside(source)
    if isinstance(template, str):
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")


def save_converted(
    path: Path,
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    source: Path,
    dtype: str | None = None,
    quantization: tuple[str, int | None, int | None] | None = None,
) -> None:
    """Writes a model of :mod:`parm_mlx.mlxlm`, loaded from ``source``, in MLX's format; the weights leave it.

    ``dtype`` is the type of weights that are not quantised, by default that of the config, or else their own.
    ``quantization`` is mode, bits and group size, MLX's default for the mode where one is None.
    """
    config = config_of(model)
    dtype = dtype or config_dtype(config)
    if dtype is not None:
        _cast(model, getattr(mx, dtype))
        record_dtype(config, dtype)
    with redirect_stdout(sys.stderr):
        if quantization is not None:
            mode, bits, group_size = quantization
            try:
                model, config = quantize_model(model, config, group_size, bits, mode=mode)
            except ValueError as error:
                raise ModelError(f"model {source} cannot be converted: {error}") from error
        save_model(path, model, donate_model=True)
        _save_config(config, model, path)
        tokenizer.save_pretrained(path)
        if (source / _GENERATION_CONFIG).is_file():
            shutil.copy(source / _GENERATION_CONFIG, path)
        create_model_card(path, None)


def _save_config(config: dict[str, object], model: nn.Module, path: Path) -> None:
    sees = "vision_tower" in getattr(model, "model", {})
    save_config(config, path / CONFIG_FILE, keep_vision_config=sees)


def _cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Casts the weights of a model, except those that its family keeps in their type."""
    may_cast = getattr(model, "cast_predicate", lambda name: True)

    def cast(name: str, weight: mx.array) -> mx.array:
        return weight.astype(dtype) if may_cast(name) and mx.issubdtype(weight.dtype, mx.floating) else weight

    model.update(tree_map_with_path(cast, model.parameters()))
