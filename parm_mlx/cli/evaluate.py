"""``parm-mlx evaluate``: prompts × preferences → answers, scores, HV, MIP, pictures and a report."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from parm_mlx.cli import console, options
from parm_mlx.cli.run import chosen_alphas, chosen_prompts, make_run
from parm_mlx.cli.session import Drafts, open_session
from parm_mlx.errors import InputError
from parm_mlx.outputs import check_claim
from parm_mlx.ranges import ANSWERS, BATCH, COUNT, SAMPLES, SEED, Real

METRICS_FILE = "metrics.json"
SCORE = Real(-1e9, 1e9)


def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of runs, with --compare.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run, or of the comparison.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put runs on one reference point, in one table and one picture.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help='File of prompts: .txt, one per line, or .jsonl, .json or .csv with "prompt" and optionally "id".',
            show_default="the bundled model's unseen questions, where it is the one that is asked",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=COUNT.high, help="Ask the first so many prompts.", show_default="all"),
    ] = None,
    grid: Annotated[
        float | None,
        typer.Option(
            "--grid",
            help="Step of the grid of preferences.",
            show_default="0.1 for two objectives, 0.25 for three, 0.5 for more",
        ),
    ] = None,
    alphas: Annotated[
        Path | None, typer.Option("--alphas", help="File of preferences, one per line, in place of a grid.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="NAME=SPEC",
            help="What scores the answers: a built-in scorer, a reward model (directory or hub id), hf:ID, or "
            "module:function; once for each objective, by its name. Other names are reported beside.",
            show_default="built-in scorers with the names of the objectives",
        ),
    ] = None,
    model: options.Model = None,
    parm: options.Parms = None,
    guide_model: options.GuideModel = None,
    beta: options.Beta = "1.0",
    temp: options.Temp = 0.0,
    top_p: options.TopP = 0.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples", min=1, max=ANSWERS.high, help="Answers to each prompt at each preference; needs --temp."
        ),
    ] = 1,
    system_prompt: options.SystemPrompt = None,
    chat_template: options.ChatTemplate = None,
    share: options.Share = "auto",
    draft_model: options.DraftModel = None,
    self_speculation: options.SelfSpeculation = False,
    num_draft_tokens: options.NumDraftTokens = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, max=BATCH.high, help="Most answers that are generated at the same time."),
    ] = 32,
    normalize: Annotated[
        Literal["unguided", "none"],
        typer.Option(
            "--normalize",
            help="Unit of the scores: standard deviations from the mean of the unguided answers, or as they are.",
        ),
    ] = "unguided",
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Reference point of the hypervolume, in that unit, by objective: -2,-2.",
            show_default="-2, or lower where a point is lower",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=1, max=SAMPLES.high, help="Samples for the confidence intervals.")
    ] = 1000,
    resume_anyway: Annotated[
        bool,
        typer.Option(
            "--resume-anyway", help="Go on with a run also where models or rewards have changed; run.json records it."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Measure how answers follow the preference: HV, MIP, pictures and a report.

    Every prompt is answered at every preference of the grid and by the base alone, in continuous batches. Answers and
    scores are kept in --out as they come: after Ctrl-C, a kill or a full disk the same command goes on. Under
    mlx.launch several processes share the work.

    \b
    Examples:
      parm-mlx evaluate --out run --limit 24
      parm-mlx evaluate --model base-8b --parm parm --prompts questions.jsonl --out run \\
          --reward helpful=models/beaver-reward --reward harmless=models/beaver-cost
      parm-mlx evaluate --compare run other-run --out comparison
    """
    if out is None:
        raise InputError("--out is missing, the folder to write", hint="for instance --out run")
    out = out.expanduser()
    point = _reference(reference)
    if compare:
        _no_more_than_compare(context)
        summary = _compare(runs or [], out, normalize, point, bootstrap)
    elif runs:
        raise InputError(f"{runs[0]}: folders of runs go with --compare", hint="a new run takes --out alone")
    else:
        if num_samples > 1 and temp == 0:
            raise InputError("--num-samples needs --temp above 0: without, all answers to a prompt are the same")
        check_claim(out, "run")
        _check_seeds(seed, num_samples)
        drafts = Drafts(draft_model, self_speculation, num_draft_tokens)
        session = open_session(model, parm, guide_model, beta, True, chat_template, share, drafts)
        if point is not None and len(point) != len(session.objectives):
            raise InputError(f"--reference has {len(point)} numbers for {len(session.objectives)} objectives")
        request = {
            "temp": temp,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "max_tokens": max_tokens,
            "seeds": list(range(seed, seed + num_samples)),
            "system_prompt": system_prompt,
            "chat_template": chat_template,
        }
        with ExitStack() as held:
            found = make_run(
                session,
                out,
                chosen_prompts(prompts, limit, bundled=parm is None),
                chosen_alphas(session, grid, alphas),
                reward,
                request,
                {"model": model, "parm": parm, "guide_model": guide_model},
                share,
                batch_size,
                held,
                resume_anyway,
            )
            if found is None:
                return
            run, results = found
            from parm_mlx.answers.results import read_settings
            from parm_mlx.evaluation.summary import summarise
            from parm_mlx.outputs import update

            summary = summarise(run, normalize=normalize, reference=point, samples=bootstrap)
            summary["settings"] = read_settings(out)
            with update(out) as partial:
                _write(summary, partial, results, run.scores)
    if as_json:
        console.record(summary)
    else:
        console.echo(_table(summary))
    console.note(f"{out / 'report.html'}  {out / METRICS_FILE}")


def _no_more_than_compare(context: typer.Context) -> None:
    allowed = {"runs", "out", "compare", "normalize", "reference", "bootstrap", "as_json"}
    for name in context.params.keys() - allowed:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} cannot be used with --compare: the runs are done already")


def _check_seeds(seed: int, count: int) -> None:
    try:
        SEED.read(seed + count - 1)
    except ValueError as reason:
        raise InputError(f"the last seed, --seed + --num-samples - 1, {reason}") from None


def _reference(spec: str | None) -> list[float] | None:
    if spec is None:
        return None
    try:
        return [SCORE.read(part) for part in spec.split(",")]
    except ValueError as reason:
        raise InputError(f"--reference {spec}: each number {reason}", hint="for instance --reference -2,-2") from None


def _compare(
    folders: Sequence[Path],
    out: Path,
    normalize: Literal["unguided", "none"],
    reference: list[float] | None,
    samples: int,
) -> dict[str, Any]:
    if len(folders) < 2:
        raise InputError(
            "--compare needs two or more folders of runs", hint="parm-mlx evaluate --compare RUN RUN --out DIR"
        )
    from parm_mlx.answers.results import differences, read_run
    from parm_mlx.evaluation.summary import Run, compare
    from parm_mlx.files import read_json
    from parm_mlx.outputs import check_new, new_directory

    check_new(out)
    runs, identities = [], []
    for folder in folders:
        identity, results, scores = read_run(folder)
        identities.append(identity)
        earlier: dict[str, Any] = {}
        if (folder / METRICS_FILE).is_file():
            earlier = read_json(folder / METRICS_FILE, f"run {folder}", InputError)
        timing = {name: value for name, value in earlier.get("time", {}).items() if name != "scoring_share"}
        name = folder.name if len({f.name for f in folders}) == len(folders) else str(folder)
        runs.append(
            Run(name, tuple(identity["objectives"]), identity["rewards"], list(results.values()), scores, timing)
        )
    summary = compare(runs, normalize=normalize, reference=reference, samples=samples)
    summary["settings"] = dict(differences(*identities))
    if len(summary["differences"]) < len(runs) - 1:
        console.note(
            "the runs have different prompts: their figures are of different questions, and no pairs are drawn"
        )
    with new_directory(out) as partial:
        _write(summary, partial, [], {})
    return summary


def _write(summary: dict[str, Any], out: Path, results: Sequence[Any], scores: Any) -> None:
    """Writes metrics.json, the pictures and the page."""
    from parm_mlx.evaluation.report.page import write_page
    from parm_mlx.evaluation.report.plots import add_pictures
    from parm_mlx.files import disk_errors

    with disk_errors(out):
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        (out / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
        add_pictures(summary, out, console.note)
        write_page(summary, results, scores, out)


def _table(summary: dict[str, Any]) -> str:
    from parm_mlx.evaluation.report.table import table

    return table(summary)
