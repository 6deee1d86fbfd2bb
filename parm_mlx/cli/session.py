"""What the commands that generate have in common: the loaded models and the preferences asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parm_mlx.cli import console
from parm_mlx.errors import InputError
from parm_mlx.preference import Alpha, format_alpha, parse_alpha, parse_betas

if TYPE_CHECKING:
    from parm_mlx.guidance.guided import GuidedModel
    from parm_mlx.guidance.loading import Share
    from parm_mlx.guidance.prompts import Prompter
    from parm_mlx.guidance.speculation import DraftCount, Drafting
    from parm_mlx.mlxlm import TokenizerWrapper


@dataclass(frozen=True)
class Session:
    """A guided model, ready to answer."""

    model: "GuidedModel"
    tokenizer: "TokenizerWrapper"
    prompter: "Prompter"
    betas: tuple[float, ...]
    drafting: "Drafting | None" = None

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that α weighs."""
        return self.model.objectives

    def alpha(self, spec: str | None) -> Alpha:
        """Reads a preference, uniform when there is none, and says so when it had to be normalised."""
        if spec is None:
            return parse_alpha([1] * len(self.objectives), self.objectives)
        alpha = parse_alpha(spec, self.objectives)
        if not math.isclose(sum(float(part.rpartition("=")[2]) for part in spec.split(",")), 1):
            console.note(f"alpha {spec} is used as {format_alpha(alpha, self.objectives)}")
        return alpha

    def alphas(self, specs: Sequence[str] | None) -> list[Alpha]:
        """Reads several preferences; one uniform one when there are none."""
        return [self.alpha(spec) for spec in specs] if specs else [self.alpha(None)]


@dataclass(frozen=True)
class Drafts:
    """What ``--draft-model``, ``--self-speculation`` and ``--num-draft-tokens`` ask for."""

    model: str | None = None
    by_base: bool = False
    tokens: int | None = None

    def check(self) -> None:
        """Checks that they go together.

        Raises:
            InputError: They do not.
        """
        if self.model is not None and self.by_base:
            raise InputError("--draft-model and --self-speculation exclude each other")
        if self.tokens is not None and self.model is None and not self.by_base:
            raise InputError(
                "--num-draft-tokens needs someone who drafts", hint="add --draft-model MODEL or --self-speculation"
            )

    def drafting(self, model: Any) -> "Drafting | None":
        """The same for the generators, with the loaded draft model."""
        from parm_mlx.guidance.speculation import Drafting

        if self.model is None and not self.by_base:
            return None
        return Drafting(model) if self.tokens is None else Drafting(model, self.tokens)


def open_session(
    model: str | None,
    parm: Sequence[str] | None,
    guide_model: str | None,
    beta: str,
    template: bool = True,
    chat_template: str | None = None,
    share: "Share" = "auto",
    drafts: Drafts | None = None,
    allow_special: bool = False,
) -> Session:
    """Loads what ``--model``, ``--parm`` (once or more), ``--guide-model`` and ``--draft-model`` name.

    Without any of them, the bundled model.

    Raises:
        InputError: A base model is given without a PARM, β is wrong, or something cannot be loaded.
    """
    betas = parse_betas(beta, len(parm or [""]))
    if not parm and (model is not None or guide_model is not None):
        raise InputError(
            "--model and --guide-model need --parm, the adapter that guides", hint="or leave all three out"
        )
    drafts = drafts or Drafts()
    drafts.check()
    console.blas_hint()
    from parm_mlx.guidance.loading import load_draft, load_with_tokenizers
    from parm_mlx.guidance.prompts import Prompter

    base, adapters = _chosen(model, parm, guide_model)
    guided, tokenizer, guide_tokenizer = load_with_tokenizers(base, adapters, guide_model, beta=betas, share=share)
    drafting = drafts.drafting(load_draft(drafts.model, tokenizer, base) if drafts.model else None)
    prompter = Prompter(
        tokenizer,
        guide_tokenizer,
        template,
        base_template=chat_template,
        guide_template=guided.guide.chat_template,
        limit=guided.context_length,
        rows=guided.rows,
        draft_rows=drafting.rows if drafting else None,
        allow_special=allow_special,
    )
    if prompter.note:
        console.note(prompter.note)
    return Session(guided, tokenizer, prompter, betas, drafting)


def _chosen(model: str | None, parm: Sequence[str] | None, guide_model: str | None) -> tuple[str, list[str]]:
    """The base and the adapters."""
    from parm_mlx.guidance.loading import BUNDLED_BASE, BUNDLED_PARM, recorded_backbone

    if not parm:
        return str(BUNDLED_BASE), [str(BUNDLED_PARM)]
    return model or guide_model or str(recorded_backbone(parm[0])), list(parm)


def note_drafts(count: "DraftCount") -> None:
    """Says how drafted tokens fared."""
    if count.passes:
        console.note(
            f"drafts: {count.accepted} of {count.drafted} tokens kept ({count.rate:.0%}), in {count.passes} checks"
        )
