"""One evaluation run from the command line: what is asked, answered and scored."""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.session import Session, model_paths
from parm_mlx.errors import InputError
from parm_mlx.preference import Alpha, simplex_grid

if TYPE_CHECKING:
    from parm_mlx.answers.results import Result
    from parm_mlx.evaluation.summary import Run
    from parm_mlx.guidance.prompts import Prompt

STEPS = {1: 1.0, 2: 0.1, 3: 0.25}
COARSE = 0.5
COST_TOKENS, COST_ROUNDS = 24, 3
BACKBONE = "backbone_token_ms"


def chosen_prompts(file: Path | None, limit: int | None, bundled: bool) -> list["Prompt"]:
    """The prompts of a file, or the bundled model's unseen questions."""
    from parm_mlx.data.prompts import check_distinct, read_prompts
    from parm_mlx.guidance.loading import BUNDLED
    from parm_mlx.guidance.prompts import Prompt, content_id

    if file is not None:
        found = read_prompts(file)
        check_distinct(found, file)
    elif bundled:
        texts = json.loads((BUNDLED / "held_out_prompts.json").read_text(encoding="utf-8"))
        found = [Prompt(content_id(text), text) for text in texts]
    else:
        raise InputError("--prompts is missing, a file of prompts", hint="for instance --prompts questions.txt")
    return found[:limit]


def chosen_alphas(session: Session, step: float | None, file: Path | None) -> list[Alpha]:
    """The preferences of a grid or of a file."""
    if file is None:
        k = len(session.objectives)
        return simplex_grid(k, STEPS.get(k, COARSE) if step is None else step)
    if step is not None:
        raise InputError("--grid and --alphas exclude each other")
    from parm_mlx.data.prompts import read_alphas

    return read_alphas(file, session.objectives)


def chosen_rewards(given: Sequence[str] | None, objectives: Sequence[str]) -> dict[str, Any]:
    """The rewards by name, those of the objectives first and in their order."""
    from parm_mlx.rewards.builtin import SCORERS
    from parm_mlx.rewards.registry import load_rewards

    if not given:
        unknown = [name for name in objectives if name not in SCORERS]
        if unknown:
            raise InputError(
                f"nothing scores {', '.join(unknown)}", hint=f"add --reward {unknown[0]}=SPEC, for each objective"
            )
        given = [f"{name}=builtin:{name}" for name in objectives]
    names = [spec.partition("=")[0] for spec in given]
    missing = [name for name in objectives if name not in names]
    if missing:
        raise InputError(
            f"no --reward for {', '.join(missing)}; the objectives are {', '.join(objectives)}",
            hint=f"add --reward {missing[0]}=SPEC",
        )
    rewards = load_rewards(given)
    return {name: rewards[name] for name in [*objectives, *(name for name in rewards if name not in objectives)]}


def make_run(
    session: Session,
    out: Path,
    prompts: Sequence["Prompt"],
    alphas: Sequence[Alpha],
    reward: Sequence[str] | None,
    request: dict[str, Any],
    names: dict[str, Any],
    share: str,
    batch_size: int,
    held: ExitStack,
    anyway: bool = False,
) -> tuple["Run", "list[Result]"] | None:
    """Answers and scores what is missing in the folder of a run.

    Args:
        session: The loaded models.
        out: The folder.
        prompts: What is asked.
        alphas: At which preferences.
        reward: ``--reward``, as given.
        request: How answers are generated: sampling, ``max_tokens``, ``seeds``, ``system_prompt``.
        names: What the models are called: ``model``, ``parm``, ``guide_model``.
        share: ``--share``, as given.
        batch_size: Most answers at the same time.
        held: What holds the folder for this process.
        anyway: Go on with a run also where its models or rewards have changed.

    Returns:
        The run and its answers; None in all processes but the main one.
    """
    from parm_mlx.answers.results import RunFolder
    from parm_mlx.answers.sweep import Sweep, plan
    from parm_mlx.distributed import join
    from parm_mlx.evaluation.evaluate import answer_all, model_digest, score_all
    from parm_mlx.evaluation.summary import Run
    from parm_mlx.fingerprint import fingerprint
    from parm_mlx.guidance.prompts import content_id
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.interrupt import stop_on_interrupt
    from parm_mlx.machine import keep_freed_memory

    keep_freed_memory()
    group = join()
    sweep = Sweep(
        session.model,
        session.tokenizer,
        session.prompter,
        Sampling(**{name: request[name] for name in ("temp", "top_p", "top_k", "min_p")}),
        request["max_tokens"],
        batch_size,
        [{"role": "system", "content": request["system_prompt"]}] if request["system_prompt"] else [],
        session.drafting,
    )
    with group.reported_once(), group.agreed():
        sweep.check(prompts)
        rewards = chosen_rewards(reward, session.objectives)
        settings = {
            **names,
            "share": share,
            "adapter_sha256": model_digest(session.model),
            "beta": list(session.betas),
            **request,
            "alphas": [list(alpha) for alpha in alphas],
            "prompts": {prompt.id: content_id(prompt.content) for prompt in prompts},
        }
        identity = {
            "objectives": list(session.objectives),
            "settings": settings,
            "models": {role: fingerprint(path) for role, path in model_paths(**names).items()},
            "reward_files": {each.source: each.digest for each in rewards.values() if each.digest},
        }
        folder = RunFolder(out, identity, anyway)
    if folder.changed and group.main:
        console.note(f"warning: going on with other models or rewards than before: {', '.join(folder.changed)}")
    group.check_same({"settings": folder.identity})
    with group.agreed():
        if group.main:
            held.enter_context(folder.locked(group.size))
    work = plan(prompts, alphas, request["seeds"])
    began = time.perf_counter()
    with stop_on_interrupt() as stopped:
        results, fresh = answer_all(folder, sweep, work, group, stopped, console.progress)
    generating = time.perf_counter() - began
    if not group.main:
        return None
    _say_how_many(sum(map(len, work)), results, fresh)
    folder.set_rewards({name: each.spec for name, each in rewards.items()})
    began = time.perf_counter()
    scores = score_all(folder, results, rewards, console.progress)
    scoring = time.perf_counter() - began
    timing = _earlier_timing(out)
    if fresh:
        tokens = sum(result.tokens for result in fresh)
        timing = {"answers": len(fresh), "tokens": tokens, "generating_s": generating, "scoring_s": scoring}
        timing |= _cost(session, prompts[0], alphas)
    return Run(out.name, session.objectives, folder.rewards, results, scores, timing), results


def _say_how_many(total: int, results: "Sequence[Result]", fresh: "Sequence[Result]") -> None:
    """Ends the command where the work was interrupted, and says what was there already."""
    if len(results) < total:
        console.note(f"interrupted: {len(results)} of {total} answers are kept; the same command goes on")
        raise typer.Exit(console.INTERRUPTED)
    if len(fresh) < total:
        console.note(f"{total - len(fresh)} of {total} answers were there already")


def _earlier_timing(out: Path) -> dict[str, float]:
    """What was measured when the answers were generated."""
    try:
        earlier = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["time"]
        return {name: value for name, value in earlier.items() if name != "scoring_share"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _cost(session: Session, prompt: "Prompt", alphas: Sequence[Alpha]) -> dict[str, float]:
    """Milliseconds per token of base, guide, plain backbone and guided decoding, one sequence each, in turns."""
    from functools import partial

    from parm_mlx.diagnostics.bench import plain, preferring
    from parm_mlx.diagnostics.timing import time_in_turns
    from parm_mlx.guidance.guides import Guides
    from parm_mlx.guidance.shared import Backbone, SharedModel, weights_differ

    model, tokens = session.model, [session.prompter(prompt.content).base]
    guides = model.guide.guides if isinstance(model.guide, Guides) else [model.guide]
    shared = isinstance(model, SharedModel)
    backbones = [] if shared else [f"{BACKBONE} {number}" for number in range(len(guides))]
    starts = {
        "base_token_ms": partial(plain, model.base, tokens, alphas[:1]),
        "guide_token_ms": partial(preferring, model.guide, tokens, alphas[:1]),
        "guided_token_ms": partial(preferring, model, tokens, alphas[:1]),
    }
    for name, guide in zip(backbones, guides, strict=False):
        starts[name] = partial(plain, Backbone(guide.model), tokens, alphas[:1])
    rounds = [time_in_turns(starts, COST_TOKENS, lambda: False) or {} for _ in range(COST_ROUNDS)]
    found = {
        name: statistics.median(1000 * samples[name].decode / samples[name].tokens for samples in rounds)
        for name in starts
    }
    found[BACKBONE] = sum(found.pop(name) for name in backbones) if backbones else found["base_token_ms"]
    same = not shared and len(guides) == 1 and weights_differ(model.base, guides[0].model) is None
    return found | {"one_pass": float(shared), "same_weights": float(same), "drafted": float(bool(session.drafting))}
