"""The loaded models of a command that generates, and the preferences asked for."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from parm_mlx.cli import console
from parm_mlx.cli.options import DraftOptions, ModelOptions
from parm_mlx.errors import InputError
from parm_mlx.preference import Alpha, format_alpha, parse_alpha, parse_betas
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.guided import GuidedModel
    from parm_mlx.guidance.prompts import Prompter
    from parm_mlx.guidance.sampling import Sampling
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
        """Reads a preference, uniform when there is none; notes where it had to be normalised."""
        if spec is None:
            return parse_alpha([1] * len(self.objectives), self.objectives)
        alpha = parse_alpha(spec, self.objectives)
        if not math.isclose(sum(float(part.rpartition("=")[2]) for part in spec.split(",")), 1):
            console.note(f"alpha {spec} is used as {format_alpha(alpha, self.objectives)}")
        return alpha

    @staticmethod
    def sampling(settings: SamplingSettings) -> "Sampling":
        """Returns the flags of sampling as the generators take them."""
        from parm_mlx.guidance.sampling import Sampling

        return Sampling(**asdict(settings))

    def alphas(self, specs: Sequence[str] | None) -> list[Alpha]:
        """Reads several preferences; a uniform one when there are none."""
        return [self.alpha(spec) for spec in specs] if specs else [self.alpha(None)]


def open_session(models: ModelOptions, drafts: DraftOptions | None = None, template: bool = True) -> Session:
    """Loads the models that the flags name; the bundled ones where none is named.

    Args:
        models: The base, the adapters and how they are used.
        drafts: What drafts tokens, if anything does.
        template: Render prompts with the chat template.

    Raises:
        InputError: The flags contradict each other, β is wrong, or something cannot be loaded.
    """
    betas = parse_betas(models.beta, len(models.parm or [""]))
    if not models.parm and (models.model is not None or models.guide_model is not None):
        raise InputError(
            "--model and --guide-model need --parm, the adapter that guides", hint="or leave all three out"
        )
    drafts = drafts or DraftOptions()
    _check_drafts(drafts)
    console.blas_hint()
    from parm_mlx.guidance.loading import load_draft, load_with_tokenizers
    from parm_mlx.guidance.prompts import Prompter
    from parm_mlx.guidance.speculation import Drafting

    base, adapters = _chosen(**models.names)
    guided, tokenizer, guide_tokenizer = load_with_tokenizers(
        base, adapters, models.guide_model, beta=betas, share=models.share
    )
    drafting = None
    if drafts.draft_model or drafts.self_speculation:
        drafter = load_draft(drafts.draft_model, tokenizer, base) if drafts.draft_model else None
        drafting = Drafting(drafter, drafts.num_draft_tokens or Drafting.tokens)
    prompter = Prompter(
        tokenizer,
        guide_tokenizer,
        template,
        base_template=models.chat_template,
        guide_template=guided.guide.chat_template,
        limit=guided.context_length,
        rows=guided.rows,
        draft_rows=drafting.rows if drafting else None,
        allow_special=models.allow_special,
    )
    if prompter.note:
        console.note(prompter.note)
    return Session(guided, tokenizer, prompter, betas, drafting)


def _check_drafts(drafts: DraftOptions) -> None:
    if drafts.draft_model is not None and drafts.self_speculation:
        raise InputError("--draft-model and --self-speculation exclude each other")
    if drafts.num_draft_tokens is not None and drafts.draft_model is None and not drafts.self_speculation:
        raise InputError(
            "--num-draft-tokens needs a model that drafts", hint="add --draft-model MODEL or --self-speculation"
        )


def _chosen(model: str | None, parm: Sequence[str] | None, guide_model: str | None) -> tuple[str, list[str]]:
    """The base and the adapters."""
    from parm_mlx.guidance.loading import BUNDLED_BASE, BUNDLED_PARM, recorded_backbone

    if not parm:
        return str(BUNDLED_BASE), [str(BUNDLED_PARM)]
    return model or guide_model or str(recorded_backbone(parm[0])), list(parm)


def note_drafts(count: "DraftCount") -> None:
    """Notes how many drafted tokens were kept."""
    if count.passes:
        console.note(
            f"drafts: {count.accepted} of {count.drafted} tokens kept ({count.rate:.0%}), in {count.passes} checks"
        )
