"""Loading base, guide and tokenizers, and checking that they fit each other."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from warnings import warn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from parm_mlx.errors import AdapterError, ModelError, RunError
from parm_mlx.files import NAMED, resolve
from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.guide import Guide, Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.renumbered import RenumberedGuide, base_order
from parm_mlx.guidance.shared import SharedModel, weights_differ
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabulary_pair import Pair
from parm_mlx.machine import usable_memory
from parm_mlx.mlxlm import (
    TokenizerWrapper,
    dequantize_model,
    limit_caches,
    load_weights_and_tokenizer,
    quantized_numbers,
)
from parm_mlx.pblora.adapter import find_backbone, load_into, read_adapter, read_config
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.preference import AlphaSpec, parse_betas
from parm_mlx.settings import check_cache_limits, check_guidance

Across = Literal["auto", "off"]
Share = Literal["auto", "on", "off"]
Dequantize = Literal["auto", "off"]
Guidance = Literal["exact", "one-pass"]
_MODELS = Path(__file__).parents[1] / "models"


def load_base(
    source: str | Path, dequantize: Dequantize = "auto", kv_bits: int | None = None, max_kv_size: int | None = None
) -> tuple[nn.Module, TokenizerWrapper]:
    """Loads a base model and its tokenizer from a directory or hub id, as :func:`suit_to_cpu` makes it.

    Raises:
        ModelError: There is no such model, or it cannot be loaded; or its caches cannot be limited.
    """
    model, tokenizer = load_weights_and_tokenizer(resolve(source))
    suit_to_cpu(model, dequantize)
    _evaluate(model)
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
) -> tuple[GuidedModel, TokenizerWrapper, TokenizerWrapper]:
    """As :func:`load`, with the guide's own tokenizer as well: base and guide may need different prompt templates."""
    check_cache_limits(kv_bits, max_kv_size)
    check_guidance(guidance, share)
    base_path = resolve(model)
    base, tokenizer = load_base(base_path, dequantize, kv_bits, max_kv_size)
    held = {base_path.resolve(): base.parameters()}
    adapters = [parm] if isinstance(parm, (str, Path)) else list(parm)
    betas = parse_betas(beta, len(adapters))
    alone = alpha if len(adapters) == 1 else None
    limits = kv_bits, max_kv_size
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
        if guides[0].chat_template is None and len({str(each.chat_template) for each in tokenizers}) > 1:
            raise ModelError("the backbones of adapters that guide together have different chat templates")
        own = len(betas) > 1  # one β for each, which is part of the guide then
        guide = Guides(guides, alpha, betas if own else None)
        beta = 1.0 if own else betas[0]
        made = AcrossModel(base, bases(guide), beta) if differ else GuidedModel(base, guide, beta)
        return made, tokenizer, tokenizers[0]
    if differ:
        return AcrossModel(base, bases(guides[0]), betas[0]), tokenizer, tokenizers[0]
    difference = None if share == "off" else weights_differ(base, guides[0].model)
    if share == "on" and difference:
        raise ModelError(
            f"base {base_path} and guide model {paths[0]} cannot share one forward pass: {difference}",
            hint="leave out --share on, or name one model for both",
        )
    if guidance == "one-pass":
        if difference:
            raise ModelError(
                f"one pass cannot stand for base {base_path} and guide model {paths[0]}: {difference}",
                hint="leave out --guidance one-pass, or name one model for both",
            )
        return OnePassModel(guides[0], betas[0]), tokenizer, tokenizers[0]
    if difference or share == "off":
        return GuidedModel(base, guides[0], betas[0]), tokenizer, tokenizers[0]
    return SharedModel(guides[0], betas[0]), tokenizer, tokenizers[0]


def _seen_by(
    base: TokenizerWrapper, own: TokenizerWrapper, how: Refinement, guide: Guide | Guides
) -> AcrossGuide | RenumberedGuide:
    """A guide as a base of another vocabulary sees it."""
    both = TokenBytes.of(base, "base"), TokenBytes.of(own, "guide")
    if (order := base_order(*both)) is not None:
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
    held: dict[Path, Any],
    dequantize: Dequantize,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[Guide, TokenizerWrapper, Path]:
    """Loads one guide; the weights of ``held``, by path, are in memory and not loaded again.

    ``limits`` are those of :func:`parm_mlx.mlxlm.limit_caches`.
    """
    adapter = resolve(parm, "adapter")
    config, tensors = read_adapter(adapter)
    path = _backbone(adapter, config, model)
    weights = held.get(path.resolve())
    backbone, tokenizer = load_weights_and_tokenizer(path, lazy=weights is not None)
    suit_to_cpu(backbone, dequantize)
    if weights is not None:
        backbone.update(weights)
    else:
        held[path.resolve()] = backbone.parameters()
    limit_caches(backbone, *limits)
    load_into(backbone, config, tensors)
    _evaluate(backbone)
    return Guide(backbone, config, alpha), tokenizer, path


def proposed_betas(adapters: Sequence[str | Path]) -> tuple[float, ...]:
    """The β for each adapter that its training proposes, 1 where it does not; one number if they are the same."""
    betas = tuple(read_config(resolve(adapter, "adapter")).beta or 1.0 for adapter in adapters)
    return betas if len(set(betas)) > 1 else betas[:1] or (1.0,)


def recorded_backbone(parm: str | Path) -> Path:
    """The backbone that an adapter records."""
    adapter = resolve(parm, "adapter")
    return _backbone(adapter, read_config(adapter), None)


def _backbone(adapter: Path, config: PBLoRAConfig, given: str | Path | None) -> Path:
    if given is not None:
        return resolve(given, "guide model")
    recorded = find_backbone(adapter, config)
    if recorded is None:
        raise AdapterError(f"adapter {adapter} does not record its backbone", hint="name it with --guide-model")
    try:
        return resolve(recorded, "guide model")
    except ModelError as error:
        hint = f"adapter {adapter} was trained on this backbone; --guide-model DIR says where it is now"
        raise ModelError(str(error), hint=hint) from None


def held_out_prompts(name: str) -> list[str]:
    """Returns the questions that the PARM of a name was not trained on."""
    return (_MODELS / f"{name}_held_out.txt").read_text(encoding="utf-8").splitlines()


def named_models(
    model: str | Path | None,
    parm: str | Path | Sequence[str | Path] | None,
    guide_model: str | Path | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> tuple[str, list[str]]:
    """Returns base and adapters, directories or hub ids, where some or all of them are left out.

    Where none is given they are ``smollm2``; ``bundled`` and a note where that is neither here nor can be fetched. The
    adapter of a model with a name is that of the name. The base of an adapter is its backbone. There are no adapters
    where a model has none.

    Raises:
        AdapterError: The adapter cannot be read or records no backbone.
    """
    adapters = [str(each) for each in ([parm] if isinstance(parm, str | Path) else parm or [])]
    if model is None and guide_model is None:
        model = str(recorded_backbone(adapters[0])) if adapters else _default(note)
    model = str(model or guide_model)
    return model, adapters or [model] * (model in NAMED)


def _default(note: Callable[[str], None]) -> str:
    *preferred, last = NAMED
    for name in preferred:
        try:
            resolve(name)
            return name
        except RunError as error:
            note(f"{error}; the model {last} answers in its place")
    return last


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
    """Computes all arrays of a model, also those that are not parameters: the thread that generates may be another."""
    mx.eval([[value for value in module.values() if isinstance(value, mx.array)] for module in model.modules()])


def check_vocabularies(
    base: TokenizerWrapper,
    other: TokenizerWrapper,
    base_path: Path,
    other_path: Path,
    role: str = "guide",
    of: str = "base",
    hint: str = "their token log-probabilities are combined, so both models need the same vocabulary",
) -> None:
    """Checks that two tokenizers give every token the same id, special tokens in one of them aside."""
    if reasons := vocabularies_differ(base, other):
        raise ModelError(
            f"{of} {base_path} and {role} {other_path} have different tokenizers: {'; '.join(reasons)}",
            hint=hint,
        )


def vocabularies_differ(base: TokenizerWrapper, other: TokenizerWrapper) -> list[str]:
    """Returns the reasons why two tokenizers cannot stand for each other; none where they can."""
    a, b = base.get_vocab(), other.get_vocab()
    by_id_a, by_id_b = ({i: token for token, i in vocab.items()} for vocab in (a, b))
    clash = sorted(i for i in by_id_a.keys() & by_id_b.keys() if by_id_a[i] != by_id_b[i])
    special = {**base.get_added_vocab(), **other.get_added_vocab()}
    unmatched = sorted(token for token in a.keys() ^ b.keys() if token not in special)
    reasons = []
    if clash:
        shown = ", ".join(f"{i} is {by_id_a[i]!r} and {by_id_b[i]!r}" for i in clash[:3])
        reasons.append(f"{len(clash)} ids stand for different tokens ({shown})")
    if unmatched:
        named = ", ".join(map(repr, unmatched[:3]))
        reasons.append(f"{len(unmatched)} tokens exist in only one of them ({named})")
    if not (base.eos_token_ids | other.eos_token_ids) & by_id_a.keys() & by_id_b.keys():
        reasons.append("they have no end-of-sequence token in common")
    return reasons
