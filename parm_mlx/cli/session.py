"""The models of a command that generates, and the preferences asked for."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from parm_mlx.cli import console
from parm_mlx.cli.defaults import variable
from parm_mlx.cli.options import BASE_ALONE, DraftOptions, ModelOptions, ServedModelOptions
from parm_mlx.errors import PreferenceError
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.preference import Alpha, format_alpha, parse_alpha
from parm_mlx.settings import check_cache_limits, check_guidance, check_models

if TYPE_CHECKING:
    from parm_mlx.guidance.session import Session
    from parm_mlx.guidance.shard import How, Shard
    from parm_mlx.guidance.speculation import DraftCount

LAUNCHED = {"MLX_RANK", "OMPI_COMM_WORLD_SIZE"}  # what mlx.launch and Open MPI set


@contextmanager
def sharded(how: "How | None", several: bool = False, /, **same: Any) -> "Iterator[Shard | None]":
    """Yields the processes that hold the models together while the block runs; None where ``--shard`` is not given.

    All of them run the block, and rank 0 alone prints. When one is lost, all end. ``same`` are settings, by name, that
    must be the same in all: with others, a process would answer something else, or leave the others alone. Without
    ``--shard``, ``several`` processes may divide the work in another way.
    """
    if how is None:
        if not several and LAUNCHED & os.environ.keys():  # only then MLX is imported so early
            from parm_mlx.distributed import refuse_several

            refuse_several()
        yield None
        return
    from parm_mlx.distributed import join
    from parm_mlx.guidance.shard import Shard
    from parm_mlx.link import Link

    group = join()
    with group.reported_once():
        shard = Shard(group, how)
        console.leave_out(b"[ring]")  # MLX tells each try to reach a process that is gone; the link tells it once
        if not shard.main:
            console.mute()
        with Link(group) as shard.link:
            group.check_same({f"values of --{name.replace('_', '-')}": value for name, value in same.items()})
            yield shard
            shard.settle()


@contextmanager
def stopping_together(shard: "Shard | None") -> Iterator[None]:
    """Lets Ctrl-C in any of the processes end the block in all of them, at the same token.

    Raises:
        KeyboardInterrupt: It did.
    """
    if shard is None:
        yield
        return
    with stop_on_interrupt() as stop:
        stopped = shard.watch(stop)
        yield
    if stopped():
        raise KeyboardInterrupt


def open_session(
    models: ServedModelOptions,
    drafts: DraftOptions = DraftOptions(),
    *,
    template: bool = True,
    alone: bool = False,
    shard: "Shard | None" = None,
) -> "Session":
    """Loads the models that the flags name; ``alone`` takes a base without a PARM, ``shard`` divides them."""
    with nullcontext() if shard is None else shard.group.agreed():
        # load_session checks the same, but is imported with MLX: wrong usage is told at once
        check_models(models.model, models.parm, models.guide_model, **asdict(drafts), alone=alone)
        check_guidance(models.guidance, models.share, drafts.speculation)
        drafting = drafts.draft_model is not None or drafts.speculation in ("guide", "base")
        if isinstance(models, ModelOptions):
            check_cache_limits(models.kv_bits, models.max_kv_size, drafting)
        from parm_mlx.guidance.session import load_session
        from parm_mlx.machine import keep_freed_memory

        keep_freed_memory()
        settings = asdict(models) | asdict(drafts) | {"shard": shard}
        session = load_session(**settings, template=template, alone=alone, announce=console.note)
        facts = {} if shard is None else _facts(session, settings, shard)
    if shard is not None:
        shard.group.check_same(facts)
    console.blas_hint()
    for line in session.notes:
        console.note(line)
    return session


def _facts(session: "Session", settings: dict[str, Any], shard: "Shard") -> dict[str, Any]:
    """What all processes that hold the models must agree on; where their files lie may differ."""
    from parm_mlx.fingerprint import fingerprint
    from parm_mlx.machine import versions

    own = {"model", "parm", "guide_model", "draft_model", "shard"}
    models = {role: fingerprint(path) for role, path in session.paths().items()}
    if shard.how == "apart":  # a process needs no weights of a model that the other has
        for files in models.values():
            del files["weights"]
    return {
        "the models": models,
        "the settings": {name: value for name, value in settings.items() if name not in own},
        "objectives and beta of the adapters": [session.objectives, session.betas],
        "the versions of MLX": [version for name, version in versions().items() if name.startswith("mlx")],
    }


def read_alpha(spec: str | None, objectives: Sequence[str]) -> Alpha | None:
    """Reads a preference, uniform where there is none given; None is the base alone.

    It notes where weights had to be normalised.
    """
    if spec == BASE_ALONE:
        return None
    if not objectives:
        raise PreferenceError("the base answers alone, without a PARM that follows a preference", hint="add --parm")
    if spec is None:
        return parse_alpha([1] * len(objectives), objectives)
    try:
        alpha = parse_alpha(spec, objectives)
    except PreferenceError as error:
        if spec in os.environ.get(variable("alpha"), "").splitlines():
            raise PreferenceError(str(error), hint=f"alpha comes from your settings ({variable('alpha')})") from None
        raise
    if not math.isclose(sum(float(part.rpartition("=")[2]) for part in spec.split(",")), 1):
        console.note(f"alpha {spec} is used as {format_alpha(alpha, objectives)}")
    return alpha


def note_drafts(count: "DraftCount") -> None:
    """Notes how many drafted tokens were kept."""
    if count.checks:
        base, guide = count.base_passes / count.tokens, count.guide_passes / count.tokens
        console.note(
            f"drafts: {count.accepted} of {count.drafted} tokens kept ({count.rate:.0%}); "
            f"passes per token: {base:.2f} of the base and {guide:.2f} of the guide"
        )


def across_count(session: "Session") -> dict[str, float]:
    """What a guide of another vocabulary has taken and left open so far; empty where there is none."""
    from parm_mlx.guidance.across import AcrossModel

    count = session.model.count if isinstance(session.model, AcrossModel) else None
    return {name: round(value, 6) for name, value in count.summary().items()} if count and count.positions else {}


def note_across(session: "Session") -> None:
    """Notes what a guide of another vocabulary has taken and left open."""
    if count := across_count(session):
        console.note(
            f"guide of another vocabulary: {count['across_passes_per_token']:.2f} passes per token; "
            f"{count['across_open']:.2%} of the distribution left open"
        )
