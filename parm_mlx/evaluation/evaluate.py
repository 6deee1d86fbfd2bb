"""Evaluation: prompts × preferences → answers, scores, metrics, pictures and a page, in the folder of a run."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from parm_mlx.answers.store import Key, Result, RunFolder, Scores, differences, read_run, read_settings
from parm_mlx.answers.sweep import Job, Progress, Sweep, answer_all, no_progress, plan, score_all
from parm_mlx.distributed import Group, join
from parm_mlx.errors import InputError
from parm_mlx.evaluation.cost import token_costs
from parm_mlx.evaluation.even import EVEN, EvenGrid
from parm_mlx.evaluation.fidelity import ReadAnswer, compare_distributions, guide_of
from parm_mlx.evaluation.inputs import Grid, Rewards, alphas_of, prompts_of, rewards_of, seeds_of
from parm_mlx.evaluation.report.page import METRICS_FILE, write_report
from parm_mlx.evaluation.summary import Normalize, Run, compare, summarise
from parm_mlx.files import expanded, read_json
from parm_mlx.fingerprint import fingerprint
from parm_mlx.guidance.across import AcrossModel
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.loading import Across, Dequantize, Guidance, Share
from parm_mlx.guidance.prompts import content_id
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.session import load_session
from parm_mlx.guidance.shard import Shard
from parm_mlx.guidance.templates import Content
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.machine import keep_freed_memory
from parm_mlx.outputs import check_claim, check_new, new_directory, update
from parm_mlx.preference import AlphaSpec
from parm_mlx.rewards.registry import Reward
from parm_mlx.settings import DraftedBy


def evaluate(
    *,
    out: str | Path,
    model: str | Path | None = None,
    parm: str | Path | Sequence[str | Path] | None = None,
    guide_model: str | Path | None = None,
    prompts: str | Path | Sequence[Content] | None = None,
    limit: int | None = None,
    alphas: str | Path | Sequence[AlphaSpec] | None = None,
    grid: Grid | None = None,
    rewards: Rewards | None = None,
    beta: float | str | Sequence[float] | None = None,
    sampling: Sampling | None = None,
    max_tokens: int = 256,
    num_samples: int = 1,
    system_prompt: str | None = None,
    chat_template: str | None = None,
    allow_special: bool = False,
    share: Share = "auto",
    dequantize: Dequantize = "auto",
    guidance: Guidance = "exact",
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
    batch_size: int = 32,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    bootstrap: int = 1000,
    fidelity: bool = False,
    resume_anyway: bool = False,
    shard: Shard | None = None,
    note: Callable[[str], None] = lambda message: None,
    progress: Progress[Any] = no_progress,
) -> dict[str, Any] | None:
    """Answers every prompt at every preference and by the base alone, scores the answers, and measures.

    Answers and scores are kept in ``out`` as they come: after an interruption the same call goes on. Under
    ``mlx.launch`` several processes share the work.

    Args:
        out: Folder of the run.
        model: Name, directory or hub id of the base. By default ``guide_model`` or the backbone that the adapter
            records; without ``parm`` ``smollm2``.
        parm: Name, directory or hub id of the adapter, or of several with one objective each; by default that of the
            model's name.
        guide_model: Backbone of the adapters; by default what they record.
        prompts: The path of a file, or texts and conversations; by default the held-out questions of a ``parm`` with a
            name.
        limit: Number of prompts to take; None takes all.
        alphas: The path of a file of preferences, or a list of them.
        grid: Step of a grid of preferences, in place of ``alphas``; by default 0.1 for two objectives, 0.25 for three,
            0.5 for more. ``"even"`` chooses 11 for two objectives that cover the front evenly; see
            :mod:`parm_mlx.evaluation.even`.
        rewards: A reward for each objective, by its name, and others to report; see
            :func:`parm_mlx.rewards.registry.load_rewards`. By default the built-in scorers of the objectives' names.
        beta: β, or one for each adapter; by default what they propose, else 1.
        sampling: How tokens are chosen; its seed is that of the first sample. Greedy by default.
        max_tokens: Length of the longest answer.
        num_samples: Answers to each prompt at each preference.
        system_prompt: System message before every prompt.
        chat_template: Name of a built-in chat template of the base.
        allow_special: Read control tokens that are written out in prompts as tokens, not as text.
        share: Whether base and guide share a forward pass; see :func:`parm_mlx.load`.
        dequantize: Whether quantised models become float32 on a CPU; see :func:`parm_mlx.load`.
        guidance: Exact, or one pass in place of base and guide; see :func:`parm_mlx.load`.
        draft_model: Directory or hub id of a model that drafts tokens.
        speculation: Drafter without a draft model, ``"guide"`` or ``"base"``: answers come one after the other then.
        num_draft_tokens: Most tokens drafted at a time.
        enable_thinking: Whether a thinking model thinks; by default as its chat template has it.
        steer_thinking: The guide steers thoughts too, and not the answer alone. Scores are of answers.
        kv_bits: Bits of the prompt caches.
        max_kv_size: Most tokens that the prompt caches hold.
        across: Whether a PARM of another vocabulary guides; see :func:`parm_mlx.load`.
        across_candidates: Most tokens of the base that it is asked about more than once.
        across_tolerance: Share of the guided distribution that it may leave open.
        batch_size: Number of answers generated at the same time.
        normalize: Unit of the scores; see :func:`parm_mlx.evaluation.summary.summarise`.
        reference: Reference point of the hypervolume in that unit, one number per objective.
        bootstrap: Samples for the confidence intervals.
        fidelity: Measure on the answers how far one pass is from exact guidance, where base and guide share weights;
            see :func:`parm_mlx.evaluation.fidelity.compare_distributions`.
        resume_anyway: Go on also where models or rewards are not those that the run began with.
        shard: The processes that hold the models together: all answer every prompt, and the main one writes.
        note: Receives notes for the user.
        progress: Shows progress: passes items on, given their number and a label.

    Returns:
        The content of ``metrics.json``; None in all processes but the main one.

    Raises:
        InputError: A model, prompt, preference, reward or setting cannot be used; or the folder holds another run.
        RunError: A reward failed, logits were not finite, or the disk is full; what is done stays.
        KeyboardInterrupt: Ctrl-C; the message says how many answers are kept.
    """
    out, sampling = expanded(out), sampling or Sampling()
    seeds = seeds_of(sampling, num_samples)
    if grid is not None and alphas is not None:
        raise InputError("a grid and a list of preferences exclude each other")
    check_claim(out, "run")
    keep_freed_memory()
    if shard is not None and fidelity:
        raise InputError("fidelity is measured where one process holds the models", hint="leave out --shard")
    if shard is not None and grid == EVEN:
        raise InputError(
            "an even grid is chosen by scores, which rank 0 alone has", hint="leave out --shard, or --grid even"
        )
    group = shard.group if shard else join()
    with group.reported_once(), group.agreed():
        session = load_session(
            model,
            parm,
            guide_model,
            beta=beta,
            share=share,
            dequantize=dequantize,
            guidance=guidance,
            chat_template=chat_template,
            allow_special=allow_special,
            system_prompt=system_prompt,
            draft_model=draft_model,
            speculation=speculation,
            num_draft_tokens=num_draft_tokens,
            enable_thinking=enable_thinking,
            steer_thinking=steer_thinking,
            kv_bits=kv_bits,
            max_kv_size=max_kv_size,
            across=across,
            across_candidates=across_candidates,
            across_tolerance=across_tolerance,
            shard=shard,
            announce=note if group.main else lambda message: None,
        )
        prompter, objectives = session.prompter, session.objectives
        guide = guide_of(session.model) if fidelity else None
        if reference is not None and len(reference) != len(objectives):
            raise InputError(f"the reference point has {len(reference)} numbers for {len(objectives)} objectives")
        asked = prompts_of(prompts, session.adapters[0])[:limit]
        weights = alphas_of(alphas, grid, objectives)

    for line in session.notes if group.main else ():
        note(line)
    sweep = Sweep(
        session.model, session.tokenizer, prompter, sampling, max_tokens, batch_size, session.system, session.drafting
    )
    with group.reported_once(), group.agreed():
        sweep.check(asked)
        loaded = rewards_of(rewards, objectives)
        settings = {
            **session.names,
            "share": share,
            "beta": list(session.betas),
            **{name: getattr(sampling, name) for name in ("temp", "top_p", "top_k", "min_p")},
            "max_tokens": max_tokens,
            "seeds": seeds,
            "system_prompt": system_prompt,
            "chat_template": chat_template,
            **({"allow_special": True} if allow_special else {}),
            **({"keep_sharpness": True} if sampling.keep_sharpness else {}),
            **({"guidance": guidance} if guidance != "exact" else {}),
            **({"dequantize": dequantize} if dequantize == "off" else {}),
            **({"enable_thinking": enable_thinking} if enable_thinking else {}),
            **({"steer_thinking": True} if steer_thinking else {}),
            **({"kv_bits": kv_bits} if kv_bits else {}),
            **({"max_kv_size": max_kv_size} if max_kv_size else {}),
            **({"across": [across_candidates, across_tolerance]} if session.model.shift else {}),
            "alphas": EVEN if grid == EVEN else [list(alpha) for alpha in weights],
            **({"even_by": {name: loaded[name].spec for name in objectives}} if grid == EVEN else {}),
            "prompts": {prompt.id: content_id(prompt.content) for prompt in asked},
        }
        identity = {
            "objectives": list(objectives),
            "settings": settings,
            "models": {role: fingerprint(path) for role, path in session.paths().items()},
            "reward_files": {reward.source: reward.digest for reward in loaded.values() if reward.digest},
        }
        folder = RunFolder(out, identity, resume_anyway)
    if folder.changed and group.main:
        note(f"warning: going on with other models or rewards than before: {', '.join(folder.changed)}")
    group.check_same({"settings": folder.identity})

    with ExitStack() as held:
        with group.agreed():
            if group.main:
                held.enter_context(folder.locked(group.size))
        chosen = EvenGrid(asked, seeds, objectives) if grid == EVEN else plan(asked, weights, seeds)
        run = _answer_and_score(folder, sweep, chosen, loaded, group, note, progress)
        if run is None:
            return None
        if guide is not None:
            run = replace(run, fidelity=_fidelity(guide, sweep, run.results, progress))
        summary = summarise(run, normalize=normalize, reference=reference, samples=bootstrap)
        summary["settings"] = read_settings(out)
        with update(out) as partial:
            write_report(summary, run.results, run.scores, partial, note)
    return summary


def _answer_and_score(
    folder: RunFolder,
    sweep: Sweep,
    grid: EvenGrid | Sequence[Sequence[Job]],
    rewards: Mapping[str, Reward],
    group: Group,
    note: Callable[[str], None],
    progress: Progress[Any],
) -> Run | None:
    """Generates and scores what is missing; returns None in all processes but the main one."""
    even = isinstance(grid, EvenGrid)
    jobs: Sequence[Sequence[Job]] = []
    results, fresh, scores = list[Result](), list[Result](), dict[Key, Scores]()
    generating, scoring = 0.0, 0.0
    with group.agreed():
        if group.main:
            folder.set_rewards({name: reward.spec for name, reward in rewards.items()})
    while (planned := _planned(grid, folder, group)) != jobs:
        jobs, began = planned, time.perf_counter()
        with stop_on_interrupt() as stopped:
            results, new = answer_all(folder, sweep, jobs, group, stopped, progress)
        fresh += new
        generating += time.perf_counter() - began
        total, began = sum(map(len, jobs)), time.perf_counter()
        if not group.main and (len(results) < total or not even):
            return None
        if len(results) < total:
            kept = f"{len(results)} of {total} answers are kept"
            raise KeyboardInterrupt(f"interrupted: {kept}; the same command goes on")
        with group.agreed() if even else nullcontext():  # on a fixed grid the others are done
            if group.main:
                scores = score_all(folder, results, rewards, progress)
        scoring += time.perf_counter() - began
    if not group.main:
        return None
    if len(fresh) < len(results):
        note(f"{len(results) - len(fresh)} of {len(results)} answers were there already")
    timing = _earlier_timing(folder.path)
    if fresh:
        across = sweep.model.count.summary() if isinstance(sweep.model, AcrossModel) and sweep.model.count else {}
        alone = sweep.model.shard is None  # the others have left
        prompt, alpha = next((result.prompt, result.alpha) for result in results if result.alpha is not None)
        timing = {
            "answers": len(fresh),
            "tokens": sum(result.tokens for result in fresh),
            "generating_s": generating,
            "scoring_s": scoring,
            **(token_costs(sweep.model, sweep.prompter(prompt), alpha, sweep.drafting is not None) if alone else {}),
            **across,
        }
    return Run(folder.path.name, sweep.model.objectives, folder.rewards, results, scores, timing)


def _planned(grid: EvenGrid | Sequence[Sequence[Job]], folder: RunFolder, group: Group) -> Sequence[Sequence[Job]]:
    """Returns the jobs that are known by now, the same in every process; the main one has the scores."""
    if not isinstance(grid, EvenGrid):
        return grid
    own = json.dumps(grid.alphas(folder.scores())).encode() if group.main else b""
    return grid.jobs([tuple(alpha) for alpha in json.loads(group.broadcast(own))])


def _fidelity(guide: Guide, sweep: Sweep, results: Sequence[Result], progress: Progress[Any]) -> dict[str, Any]:
    guided = [result for result in results if result.alpha is not None]

    def read() -> Iterator[ReadAnswer]:
        for result in progress(guided, len(guided), "answers read again"):
            answer = sweep.tokenizer.encode(result.text, add_special_tokens=False)
            yield ReadAnswer(sweep.prompt_tokens(result.prompt).base, answer, result.alpha)

    return compare_distributions(guide, sweep.model.beta, read())


def compare_runs(
    folders: Sequence[Path],
    out: Path,
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    bootstrap: int = 1000,
    force: bool = False,
    note: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Compares finished runs on one scale; writes metrics, pictures and a page to the new folder ``out``.

    ``force`` replaces an earlier comparison. Other arguments are those of :func:`evaluate`. Returns the content of
    ``metrics.json``.

    Raises:
        InputError: A folder holds no finished run, or the runs cannot be compared.
        OutputError: ``out`` exists.
    """
    if len(folders) < 2:
        raise InputError(
            "a comparison needs two or more folders of runs", hint="parm-mlx evaluate --compare RUN RUN --out DIR"
        )
    check_new(out, force)
    unique = len({folder.name for folder in folders}) == len(folders)
    runs, identities = [], []
    for folder in folders:
        run, results, scores = read_run(folder)
        identities.append(run)
        name, timing = folder.name if unique else str(folder), _earlier_timing(folder)
        found = list(results.values())
        measured = Run(name, tuple(run["objectives"]), run["rewards"], found, scores, timing)
        runs.append(replace(measured, fidelity=_earlier_metrics(folder).get("fidelity")))
    summary = compare(runs, normalize=normalize, reference=reference, samples=bootstrap)
    summary["settings"] = dict(differences(*identities))
    if len(summary["differences"]) < len(runs) - 1:
        note("the runs have different prompts: their figures are of different questions, and no pairs are drawn")
    with new_directory(out, force) as partial:
        write_report(summary, [], {}, partial, note)
    return summary


def _earlier_timing(folder: Path) -> dict[str, float]:
    """Returns what was measured when the answers were generated; nothing if that cannot be read."""
    try:
        earlier: Any = _earlier_metrics(folder)["time"]
        return {name: float(value) for name, value in earlier.items() if name != "scoring_share"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _earlier_metrics(folder: Path) -> dict[str, Any]:
    """Returns the metrics that a run was reported with; empty if they cannot be read."""
    try:
        return dict(read_json(folder / METRICS_FILE, f"run {folder}", InputError))
    except InputError:
        return {}
