"""Loading base, guide and tokenizers, and checking that they fit each other."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from warnings import warn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from parm_mlx.errors import ModelError
from parm_mlx.files import resolve
from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.apart import ApartModel
from parm_mlx.guidance.guide import Guide, Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.named import backbone_of, named_models, proposed_betas
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.renumbered import RenumberedGuide, base_order
from parm_mlx.guidance.shard import How, Shard
from parm_mlx.guidance.shared import SharedModel, weights_differ
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabularies import check_vocabularies, vocabularies_differ
from parm_mlx.guidance.vocabulary_pair import Pair
from parm_mlx.machine import usable_memory
from parm_mlx.mlxlm import (
    TokenizerWrapper,
    dequantize_model,
    limit_caches,
    load_tokenizer_alone,
    load_weights_and_tokenizer,
    quantized_numbers,
)
from parm_mlx.mlxlm import read_config as read_model_config
from parm_mlx.pblora.adapter import load_into, read_adapter, read_config
from parm_mlx.preference import AlphaSpec, parse_betas
from parm_mlx.settings import check_cache_limits, check_guidance

Across = Literal["auto", "off"]
Share = Literal["auto", "on", "off"]
Dequantize = Literal["auto", "off"]
Guidance = Literal["exact", "one-pass"]


def load_base(
    source: str | Path,
    dequantize: Dequantize = "auto",
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
    shard: Shard | None = None,
) -> tuple[nn.Module, TokenizerWrapper]:
    """Loads a base model and its tokenizer from a directory or hub id, as :func:`suit_to_cpu` makes it.

    Of a ``shard``, each process has its part.

    Raises:
        ModelError: There is no such model, or it cannot be loaded or divided; or its caches cannot be limited.
    """
    path = resolve(source)
    model, tokenizer = load_weights_and_tokenizer(path, lazy=shard is not None)
    suit_to_cpu(model, dequantize)
    if shard is None:
        _evaluate(model)
    else:
        shard.cut(model, path)
    limit_caches(model, kv_bits, max_kv_size)
    return model, tokenizer


def load_guide(
    parm: str | Path,
    model: str | Path | None = None,
    alpha: AlphaSpec | None = None,
    dequantize: Dequantize = "auto",
) -> tuple[Guide, TokenizerWrapper]:
    """Loads a PARM, an adapter and its backbone, and the backbone's tokenizer.

    Args:
        parm: Directory or hub id of an adapter in this package's format.
        model: The backbone; what the adapter records when left out.
        alpha: The default preference.
        dequantize: See :func:`load`.

    Raises:
        AdapterError: The adapter cannot be read or does not fit the backbone.
        ModelError: The backbone cannot be loaded.
    """
    guide, tokenizer, _ = _load_guide(parm, model, alpha, {}, dequantize)
    return guide, tokenizer


def load(
    model: str | Path | None = None,
    parm: str | Path | Sequence[str | Path] | None = None,
    guide_model: str | Path | None = None,
    alpha: AlphaSpec | None = None,
    beta: float | Sequence[float] | None = None,
    share: Share = "auto",
    dequantize: Dequantize = "auto",
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
    guidance: Guidance = "exact",
    across: Across = "auto",
    across_candidates: int = Refinement.candidates,
    across_tolerance: float = Refinement.tolerance,
    shard: Shard | None = None,
) -> tuple[GuidedModel, TokenizerWrapper]:
    """Loads a base model guided by a PARM, or by several reward models of one objective each.

    Args:
        model: Name, directory or hub id of the base model; see :func:`named_models` where it is left out.
        parm: Name, directory or hub id of the adapter. Of several adapters with one objective each (GenARM), α weighs
            each by its objective; the order of α is theirs.
        guide_model: Backbone of the adapters; what each records when left out.
        alpha: The default preference: k weights, ``"0.7,0.3"``, ``"helpful=0.7,harmless=0.3"`` or a mapping.
        beta: β of Eq. 13, or one β_i for each of several adapters. Smaller β, stronger guide. By default what the
            adapters propose, else 1.
        share: If base and guide are computed in one forward pass: ``"auto"`` where they share weights,
            ``"on"`` to insist on it, ``"off"`` never.
        dequantize: If quantised models become float32 where MLX computes on a CPU: ``"auto"`` where memory allows,
            ``"off"`` never.
        kv_bits: Quantises the prompt caches to so many bits.
        max_kv_size: Most tokens that the prompt caches hold; what is older is forgotten, but for the first four.
        guidance: ``"exact"`` computes base and guide; ``"one-pass"`` one network that stands for both, where they share
            weights. It costs no more than the base alone, and is an approximation: see
            :mod:`parm_mlx.guidance.one_pass`.
        across: If a guide of another vocabulary guides, by what it would write (:mod:`parm_mlx.guidance.pushforward`):
            ``"auto"`` where the vocabularies differ, ``"off"`` never.
        across_candidates: Most tokens of the base that the guide is asked on about, where they take several of its own.
        across_tolerance: Share of the guided distribution that may be left open.
        shard: The processes that hold the model together (:mod:`parm_mlx.guidance.shard`); all of them call this. The
            samplers of mlx-lm's functions must be ``shard.sampler(…)`` then.

    Returns:
        The guided model, which any mlx-lm function runs, and the base's tokenizer. The end-of-sequence tokens of a
        guide of the same vocabulary are among its ``eos_token_ids``: either's end is the end of an answer.

    Raises:
        AdapterError: The adapter cannot be read or does not fit its backbone.
        ModelError: A model cannot be loaded, the tokenizers differ, or weights that should be shared do.
        InputError: ``guidance`` and ``share`` exclude each other.
        PreferenceError: α or β cannot be used.
    """
    base, adapters = named_models(model, parm, guide_model, note=warn)
    if not adapters:
        read_model_config(resolve(base))  # a wrong name is told first
        raise ModelError(f"{base} needs a PARM, the adapter that guides it", hint="name it with parm=")
    beta = proposed_betas(adapters) if beta is None else beta
    guided, tokenizer, _ = load_with_tokenizers(
        base,
        adapters,
        guide_model,
        alpha,
        beta,
        share,
        dequantize,
        kv_bits,
        max_kv_size,
        guidance,
        across,
        across_candidates,
        across_tolerance,
        shard,
    )
    return guided, tokenizer


def load_with_tokenizers(
    model: str | Path,
    parm: str | Path | Sequence[str | Path],
    guide_model: str | Path | None = None,
    alpha: AlphaSpec | None = None,
    beta: float | Sequence[float] = 1.0,
    share: Share = "auto",
    dequantize: Dequantize = "auto",
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
    guidance: Guidance = "exact",
    across: Across = "auto",
    across_candidates: int = Refinement.candidates,
    across_tolerance: float = Refinement.tolerance,
    shard: Shard | None = None,
) -> tuple[GuidedModel, TokenizerWrapper, TokenizerWrapper]:
    """As :func:`load`, with the guide's own tokenizer as well: base and guide may need different prompt templates."""
    check_cache_limits(kv_bits, max_kv_size)
    check_guidance(guidance, share)
    base_path = resolve(model)
    adapters = [parm] if isinstance(parm, (str, Path)) else list(parm)
    betas = parse_betas(beta, len(adapters))
    alone = alpha if len(adapters) == 1 else None
    limits = kv_bits, max_kv_size
    how = None if shard is None else shard.how
    if how in ("pipeline", "apart") and (share == "on" or guidance == "one-pass"):
        asked = "--share on" if share == "on" else "--guidance one-pass"
        raise ModelError(
            f"--shard {how} and {asked} exclude each other: base and guide are not cut together",
            hint="--shard tensor cuts a shared backbone",
        )
    if shard is not None and how == "apart":
        return _load_apart(base_path, adapters, guide_model, alpha, betas, share, dequantize, limits, shard)
    base, tokenizer = load_base(base_path, dequantize, kv_bits, max_kv_size, shard)
    # Weights that are in memory serve every guide that has the same; in a pipeline, guides are whole.
    held = {} if how == "pipeline" else {base_path.resolve(): (base.parameters(), shard)}
    loaded = (_load_guide(each, guide_model, alone, held, dequantize, limits) for each in adapters)
    guides, tokenizers, paths = zip(*loaded, strict=True)
    differ = across == "auto" and any(vocabularies_differ(tokenizer, each) for each in tokenizers)
    for guide_tokenizer, path in zip(tokenizers, paths, strict=True):
        if differ:
            hint = "adapters that guide together need one vocabulary, the base's or not"
            check_vocabularies(tokenizers[0], guide_tokenizer, paths[0], path, "guide", "guide", hint)
        else:
            check_vocabularies(tokenizer, guide_tokenizer, base_path, path)
    for guide_tokenizer in tokenizers if not differ else ():
        tokenizer.eos_token_ids = tokenizer.eos_token_ids | guide_tokenizer.eos_token_ids
    if differ and share == "on":
        raise ModelError(
            f"base {base_path} and guide model {paths[0]} have different vocabularies, and cannot share a forward pass",
            hint="leave out --share on",
        )
    if differ and guidance == "one-pass":
        raise ModelError(
            f"one pass cannot stand for base {base_path} and guide model {paths[0]}: their vocabularies differ",
            hint="leave out --guidance one-pass",
        )
    bases = partial(_seen_by, tokenizer, tokenizers[0], Refinement(across_candidates, tolerance=across_tolerance))
    if len(guides) > 1:
        if share == "on":
            raise ModelError("several adapters cannot share one forward pass", hint="leave out --share on")
        if guidance == "one-pass":
            raise ModelError(
                "one pass cannot stand for several adapters that guide together", hint="leave out --guidance one-pass"
            )
        guide, beta = _together(guides, tokenizers, alpha, betas)
        made = AcrossModel(base, bases(guide), beta) if differ else GuidedModel(base, guide, beta)
    elif differ:
        made = AcrossModel(base, bases(guides[0]), betas[0])
    else:
        made = _of_one_vocabulary(base, guides[0], betas[0], share, guidance, how, (base_path, paths[0]))
    made.shard = shard
    return made, tokenizer, tokenizers[0]


def _together(
    guides: Sequence[Guide], tokenizers: Sequence[TokenizerWrapper], alpha: AlphaSpec | None, betas: Sequence[float]
) -> tuple[Guides, float]:
    """Several adapters as one guide, and the β beside it."""
    if guides[0].chat_template is None and len({str(each.chat_template) for each in tokenizers}) > 1:
        raise ModelError("the backbones of adapters that guide together have different chat templates")
    own = len(betas) > 1  # one β for each, which is part of the guide then
    return Guides(guides, alpha, betas if own else None), 1.0 if own else betas[0]


def _of_one_vocabulary(
    base: nn.Module,
    guide: Guide,
    beta: float,
    share: Share,
    guidance: Guidance,
    how: How | None,
    paths: tuple[Path, Path],
) -> GuidedModel:
    """The guided model of a base and one guide, in one forward pass where they share weights."""
    difference = None if share == "off" else weights_differ(base, guide.model)
    if how == "pipeline":
        difference = difference or "in a pipeline the guide is whole in every process"
    if share == "on" and difference:
        raise ModelError(
            f"base {paths[0]} and guide model {paths[1]} cannot share one forward pass: {difference}",
            hint="leave out --share on, or name one model for both",
        )
    if guidance == "one-pass":
        if difference:
            raise ModelError(
                f"one pass cannot stand for base {paths[0]} and guide model {paths[1]}: {difference}",
                hint="leave out --guidance one-pass, or name one model for both",
            )
        return OnePassModel(guide, beta)
    return GuidedModel(base, guide, beta) if difference or share == "off" else SharedModel(guide, beta)


def _load_apart(
    base_path: Path,
    adapters: Sequence[str | Path],
    guide_model: str | Path | None,
    alpha: AlphaSpec | None,
    betas: Sequence[float],
    share: Share,
    dequantize: Dequantize,
    limits: tuple[int | None, int | None],
    shard: Shard,
) -> tuple[GuidedModel, TokenizerWrapper, TokenizerWrapper]:
    """Loads the base in rank 0 and the guide in rank 1; both have both tokenizers."""
    paths = [backbone_of(each, read_config(each), guide_model) for each in (resolve(a, "adapter") for a in adapters)]
    if share != "off" and any(path.resolve() == base_path.resolve() for path in paths):
        raise ModelError(
            f"base and guide are {base_path}: --shard apart would load it twice, where they share its weights",
            hint="--shard tensor divides it; --share off insists on two copies",
        )
    part: Any
    beta = 1.0 if len(adapters) > 1 and len(betas) > 1 else betas[0]
    with shard.group.agreed():
        tokenizer, tokenizers = load_tokenizer_alone(base_path), [load_tokenizer_alone(path) for path in paths]
        for path, guide_tokenizer in zip(paths, tokenizers, strict=True):
            hint = "--shard apart adds the logits of base and guide, so both need one vocabulary"
            check_vocabularies(tokenizer, guide_tokenizer, base_path, path, hint=hint)
            tokenizer.eos_token_ids = tokenizer.eos_token_ids | guide_tokenizer.eos_token_ids
        if shard.main:
            part, _ = load_base(base_path, dequantize, *limits)
        else:
            held: dict[Path, tuple[Any, Shard | None]] = {}
            alone = alpha if len(adapters) == 1 else None
            guides = [_load_guide(each, guide_model, alone, held, dequantize, limits)[0] for each in adapters]
            part = guides[0] if len(guides) == 1 else _together(guides, tokenizers, alpha, betas)[0]
    return ApartModel(part, beta, shard), tokenizer, tokenizers[0]


def _seen_by(
    base: TokenizerWrapper, own: TokenizerWrapper, how: Refinement, guide: Guide | Guides
) -> AcrossGuide | RenumberedGuide:
    """A guide as a base of another vocabulary sees it."""
    both = TokenBytes.of(base, "base"), TokenBytes.of(own, "guide")
    if (order := base_order(*both, guide.rows)) is not None:
        return RenumberedGuide(guide, order)
    start = own.bos_token_id
    return AcrossGuide(guide, Pair(*both, min(own.eos_token_ids) if start is None else start), how)


def load_draft(
    source: str | Path, base: TokenizerWrapper, model: str | Path, dequantize: Dequantize = "auto"
) -> nn.Module:
    """Loads a draft model for the base of this tokenizer and name."""
    path = resolve(source, "draft model")
    draft, tokenizer = load_base(path, dequantize)
    check_vocabularies(base, tokenizer, Path(model), path, role="draft model")
    return draft


def _load_guide(
    parm: str | Path,
    model: str | Path | None,
    alpha: AlphaSpec | None,
    held: dict[Path, tuple[Any, Shard | None]],
    dequantize: Dequantize,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[Guide, TokenizerWrapper, Path]:
    """Loads one guide; the weights of ``held``, by path, are in memory and not loaded again, cut by a shard or whole.

    ``limits`` are those of :func:`parm_mlx.mlxlm.limit_caches`.
    """
    adapter = resolve(parm, "adapter")
    config, tensors = read_adapter(adapter)
    path = backbone_of(adapter, config, model)
    weights, shard = held.get(path.resolve(), (None, None))
    backbone, tokenizer = load_weights_and_tokenizer(path, lazy=weights is not None)
    suit_to_cpu(backbone, dequantize)
    if shard is not None:
        shard.cut(backbone, path, evaluate=False)
    if weights is not None:
        backbone.update(weights)
    else:
        held[path.resolve()] = backbone.parameters(), None
    limit_caches(backbone, *limits)
    load_into(backbone, config, tensors)
    _evaluate(backbone)
    return Guide(backbone, config, alpha), tokenizer, path


def suit_to_cpu(model: nn.Module, dequantize: Dequantize = "auto") -> None:
    """Makes weights float32 where MLX computes on a CPU; nothing is computed yet.

    16-bit weights always: they are much slower there. Quantised ones where ``dequantize`` is "auto" and they take no
    more than a quarter of the memory then: MLX's quantised products on a CPU cost in proportion to the rows.
    """
    if mx.default_device() != mx.cpu:
        return
    halves = (mx.float16, mx.bfloat16)
    model.update(tree_map(lambda x: x.astype(mx.float32) if x.dtype in halves else x, model.parameters()))
    size = sum(4 * count for layer in model.modules() if (count := quantized_numbers(layer)))
    if dequantize == "auto" and 0 < size <= usable_memory() / 4:
        dequantize_model(model)


def _evaluate(model: nn.Module) -> None:
    """Computes all arrays of a model, also those that are not parameters: the thread that generates may be another.

    One after the other, so that memory holds no more than one array beside what it was converted from.
    """
    for value in (value for module in model.modules() for value in module.values() if isinstance(value, mx.array)):
        mx.eval(value)
