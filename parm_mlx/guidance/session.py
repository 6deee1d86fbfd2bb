"""Models that are loaded and ready to answer, as the commands and an evaluation ask for them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten

from parm_mlx.errors import InputError
from parm_mlx.files import resolve
from parm_mlx.fingerprint import directory_digest
from parm_mlx.guidance.apart import ApartModel
from parm_mlx.guidance.costs import QUESTIONS, Costs, key, measure, recall, remember
from parm_mlx.guidance.fit import fetching, misfit
from parm_mlx.guidance.guided import GuidedModel, Unguided
from parm_mlx.guidance.loading import Across, Dequantize, Guidance, Share, load_base, load_draft, load_with_tokenizers
from parm_mlx.guidance.named import named_models, proposed_betas, recorded_backbone
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.shard import Shard
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.guidance.templates import Message
from parm_mlx.mlxlm import TokenizerWrapper, is_quantized, quantized_numbers
from parm_mlx.preference import parse_betas
from parm_mlx.settings import DraftedBy, check_cache_limits, check_guidance, check_models


@dataclass
class Automatic:
    """Choices that wait for a measurement: who drafts, and whether a shared backbone takes one pass or two."""

    tokens: int  # most tokens drafted at a time
    share: Share
    kv_bits: int | None
    costs: Costs | None = None  # what the choices follow from, once it is known


@dataclass(frozen=True)
class Session:
    """A guided model and all that it takes to ask it."""

    names: dict[str, Any]  # ``model``, ``parm`` and ``guide_model`` as they were asked for; None where left out
    base: str  # directory or hub id of the base
    adapters: list[str]
    betas: tuple[float, ...]
    model: GuidedModel
    tokenizer: TokenizerWrapper
    prompter: Prompter
    drafting: Drafting | None  # what was asked for
    automatic: Automatic | None  # what is left to measurement
    system: list[Message]  # the messages before every prompt
    notes: list[str]  # for the user

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that α weighs."""
        return self.model.objectives

    def drafting_alone(self, announce: Callable[[str], None] = lambda message: None) -> Drafting | None:
        """Returns the drafter for one answer at a time: the one that was asked for, or else the one that pays here.

        On a shared backbone, the model then takes two passes in place of one where these are faster. Passes are
        measured where their costs are not known.
        """
        if self.automatic is None or isinstance(self.model, Unguided):
            return self.drafting
        try:
            costs = self.costs(announce)
        except InputError:  # the model cannot read the questions: its context is too short for them
            return None
        if isinstance(self.model, SharedModel):
            self.model.apart = costs.apart and self.automatic.share == "auto"
        drafter = costs.drafter
        return None if drafter == "off" else Drafting(None, self.automatic.tokens, by_guide=drafter == "guide")

    def costs(self, announce: Callable[[str], None] = lambda message: None) -> Costs:
        """Returns the costs of passes on this machine, measured now or before."""
        assert self.automatic is not None
        if self.automatic.costs is not None:
            return self.automatic.costs
        digests = {role: directory_digest(path) for role, path in self.paths().items()}
        weights: dict[str, mx.array] = dict(tree_flatten(self.model.parameters()))
        size = sum(value.nbytes for value in weights.values())
        settings = {"betas": self.betas, "bytes": size, "shared": isinstance(self.model, SharedModel)}
        settings |= {"tokens": self.automatic.tokens, "kv_bits": self.automatic.kv_bits}
        shard = self.model.shard
        settings |= {} if shard is None else {"shard": [shard.how, shard.group.size]}
        name = key(digests, settings)
        known = recall(name)
        found: Any = self.model.decide(None if known is None else asdict(known))
        if found is None:
            announce(
                "measuring once how fast these models are here, up to half a minute (--speculation off does without)"
            )
            prompts = [self.prompter([{"role": "user", "content": question}]) for question in QUESTIONS]
            ends = frozenset(self.tokenizer.eos_token_ids)
            found = self.model.decide(asdict(measure(self.model, prompts, ends, self.automatic.tokens)))
            if shard is None or shard.main:
                remember(name, " + ".join([self.base, *self.adapters]), Costs(**found))
        self.automatic.costs = Costs(**found)
        return self.automatic.costs

    def paths(self) -> dict[str, Path]:
        """Returns the directories of the models by their roles."""
        paths, guide_model = {"base": resolve(self.base)}, self.names["guide_model"]
        for number, adapter in enumerate(self.adapters, 1):
            of = "" if len(self.adapters) == 1 else f" {number}"
            own = _backbone(adapter, guide_model)
            paths[f"adapter{of}"] = resolve(adapter, "adapter")
            if own.resolve() != paths["base"].resolve():
                paths[f"guide model{of}"] = own
        return paths


def load_session(
    model: str | Path | None = None,
    parm: str | Path | Sequence[str | Path] | None = None,
    guide_model: str | Path | None = None,
    *,
    beta: float | str | Sequence[float] | None = None,
    share: Share = "auto",
    dequantize: Dequantize = "auto",
    guidance: Guidance = "exact",
    template: bool = True,
    chat_template: str | None = None,
    allow_special: bool = False,
    system_prompt: str | None = None,
    draft_model: str | Path | None = None,
    speculation: DraftedBy = "auto",
    num_draft_tokens: int | None = None,
    enable_thinking: Literal["on", "off"] | None = None,
    steer_thinking: bool = False,
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
    across: Across = "auto",
    across_candidates: int = Refinement.candidates,
    across_tolerance: float = Refinement.tolerance,
    alone: bool = False,
    shard: Shard | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Session:
    """Loads models and makes them ready to answer; :func:`named_models` says which, where some are left out.

    ``template`` renders prompts with chat templates. ``alone`` takes a model without a PARM, which then answers
    unguided. ``shard`` are the processes that hold the models together and all call this. ``announce`` is told at once
    what a user should know before models are loaded. Other arguments are those of :func:`parm_mlx.evaluate`.

    Raises:
        InputError: The arguments contradict each other, β is wrong, or something cannot be loaded.
    """
    check_models(model, parm, guide_model, draft_model, speculation, num_draft_tokens, alone)
    drafts = draft_model is not None or speculation in ("guide", "base")
    check_cache_limits(kv_bits, max_kv_size, drafts)
    check_guidance(guidance, share, speculation)
    if shard is not None and shard.how == "apart" and drafts:
        raise InputError(
            "--shard apart and drafting exclude each other: base and guide read every token at the same time",
            hint="leave out --draft-model and --speculation",
        )
    given = 1 if parm is None or isinstance(parm, str | Path) else max(len(parm), 1)
    betas = None if beta is None else parse_betas(beta, given)
    notes: list[str] = []
    for source in dict.fromkeys([model, *([parm] if isinstance(parm, str | Path) else parm or ()), guide_model]):
        if source is not None and (message := fetching(source)):
            announce(message)
    base, adapters = named_models(model, parm, guide_model, announce)
    names = {
        "model": base if model is not None or not parm else None,
        "parm": adapters or None,
        "guide_model": None if guide_model is None else str(guide_model),
    }
    guided: GuidedModel
    paths = [resolve(base), *(_backbone(adapter, guide_model) for adapter in adapters if guidance == "exact")]
    if shard is None and (problem := misfit(paths, kv_bits=kv_bits, max_kv_size=max_kv_size)):
        announce(f"warning: {problem}")
    if betas is None:
        betas = proposed_betas(adapters)
        if any(each != 1 for each in betas):
            notes.append(f"beta {','.join(f'{each:g}' for each in betas)}, as proposed by the adapter (--beta)")
    if adapters:
        guided, tokenizer, guide_tokenizer = load_with_tokenizers(
            base,
            adapters,
            guide_model,
            beta=betas,
            share=share,
            dequantize=dequantize,
            kv_bits=kv_bits,
            max_kv_size=max_kv_size,
            guidance=guidance,
            across=across,
            across_candidates=across_candidates,
            across_tolerance=across_tolerance,
            shard=shard,
        )
        if guided.shift:
            notes.append("the PARM has another vocabulary: it guides by what it would write (docs/vocabularies.md)")
        if guided.shift and speculation == "guide":
            raise InputError(
                "a guide of another vocabulary cannot draft: its tokens are not the base's",
                hint="leave out --speculation guide; --speculation base drafts with the base",
            )
    else:
        if shard is not None and shard.how == "apart":
            raise InputError("--shard apart divides base and guide, and there is no guide", hint="add --parm")
        model_alone, tokenizer = load_base(base, dequantize, kv_bits, max_kv_size, shard)
        guided, guide_tokenizer = Unguided(model_alone), tokenizer
        guided.shard = shard
    drafting = None
    if drafts:
        drafter = None if draft_model is None else load_draft(draft_model, tokenizer, base, dequantize)
        drafting = Drafting(drafter, num_draft_tokens or Drafting.tokens, by_guide=speculation == "guide")
    prompter = Prompter(
        tokenizer,
        guide_tokenizer,
        template,
        base_template=chat_template,
        guide_template=guided.guide.chat_template if adapters else None,
        limit=guided.context_length,
        rows=guided.rows,
        draft_rows=drafting.rows if drafting else None,
        allow_special=allow_special,
        enable_thinking=None if enable_thinking is None else enable_thinking == "on",
        steer_thinking=steer_thinking,
        one_prompt=guided.reads_once,
        shift=guided.shift,
    )
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    notes += [prompter.note] if prompter.note else []
    if is_quantized(resolve(base)) and not any(map(quantized_numbers, guided.modules())):
        notes.append(f"{base} is computed in float32, which is faster on a CPU (--dequantize off keeps its bits)")
    automatic = None
    measured = not (drafts or guided.reads_once or guided.shift or isinstance(guided, ApartModel))
    if speculation == "auto" and measured and max_kv_size is None:
        automatic = Automatic(num_draft_tokens or Drafting.tokens, share, kv_bits)
    return Session(names, base, adapters, betas, guided, tokenizer, prompter, drafting, automatic, system, notes)


def _backbone(adapter: str, guide_model: str | Path | None) -> Path:
    return resolve(guide_model, "guide model") if guide_model else recorded_backbone(adapter)
