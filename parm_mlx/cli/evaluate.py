"""``parm-mlx evaluate``: prompts × preferences → answers, scores, HV, MIP, pictures and a report."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import DraftOptions, MaxTokens, ModelOptions, flag, grouped, is_given
from parm_mlx.cli.session import sharded
from parm_mlx.errors import InputError
from parm_mlx.preference import SMALLEST_STEP, check_beta
from parm_mlx.ranges import ANSWERS, BATCH, COUNT, SAMPLES, Real
from parm_mlx.settings import Items, OrWord, SamplingSettings


@grouped
def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of runs, with --compare.")
    ] = None,
    out: Annotated[Path | None, flag("Folder of the run, or of the comparison.")] = None,
    compare: Annotated[bool, flag("Put runs on one reference point, in one table and one picture.")] = False,
    prompts: Annotated[
        Path | None,
        flag(
            'File of prompts: .txt, one per line, or .jsonl, .json or .csv with "prompt" and optionally "id".',
            default_text="unseen questions, for the PARMs bundled and smollm2",
        ),
    ] = None,
    limit: Annotated[int | None, flag("Ask the first so many prompts.", COUNT, default_text="all")] = None,
    grid: Annotated[
        Any,
        flag(
            "Step of the grid of preferences, from 0.0001 to 1; or, for two objectives, even: eleven that cover the "
            "front evenly, each further one where the scores are farthest apart.",
            OrWord(Real(SMALLEST_STEP, 1), "even"),
            default_text="0.1 for two objectives, 0.25 for three, 0.5 for more",
            metavar="<float|even>",
        ),
    ] = None,
    alphas: Annotated[Path | None, flag("File of preferences, one per line, in place of a grid.")] = None,
    reward: Annotated[
        list[str] | None,
        flag(
            "What scores the answers: a built-in scorer, a reward model (directory or hub id), hf:ID, or "
            "module:function; once for each objective, by its name. Other names are reported beside.",
            metavar="NAME=SPEC",
            default_text="built-in scorers with the names of the objectives",
        ),
    ] = None,
    models: ModelOptions = ModelOptions(),
    sampling: SamplingSettings = SamplingSettings(),
    max_tokens: MaxTokens = 256,
    num_samples: Annotated[int, flag("Answers to each prompt at each preference; needs --temp.", ANSWERS)] = 1,
    drafts: DraftOptions = DraftOptions(),
    batch_size: Annotated[int, flag("Most answers that are generated at the same time.", BATCH)] = 32,
    normalize: Annotated[
        Literal["unguided", "none"],
        flag("Unit of the scores: standard deviations from the mean of the unguided answers, or as they are."),
    ] = "unguided",
    reference: Annotated[
        tuple[float, ...] | None,
        flag(
            "Reference point of the hypervolume, in that unit, by objective: -2,-2.",
            Items(Real(-1e9, 1e9)),
            default_text="-2, or lower where a point is lower",
        ),
    ] = None,
    bootstrap: Annotated[int, flag("Samples for the confidence intervals.", SAMPLES)] = 1000,
    fidelity: Annotated[
        bool,
        flag("Measure on the answers how far --guidance one-pass is from exact; base and guide need the same weights."),
    ] = False,
    resume_anyway: Annotated[
        bool, flag("Go on with a run also where models or rewards have changed; run.json records it.")
    ] = False,
    as_json: Annotated[bool, flag("Print the metrics as one JSON object.", name="--json")] = False,
) -> None:
    """Measure how answers follow the preference: HV, MIP, pictures and a report.

    Every prompt is answered at every preference of the grid and by the base alone, in continuous batches. Answers and
    scores are kept in --out as they come: after Ctrl-C, a kill or a full disk the same command goes on. Under
    mlx.launch several processes share the work or, with --shard, hold the models together. Several β with one adapter
    (--beta 0.5,1,2) are a sweep: a run for each in a folder of --out, and their comparison.

    \b
    Examples:
      parm-mlx evaluate --out run --limit 24
      parm-mlx evaluate --model base-8b --parm parm --prompts questions.jsonl --out run \\
          --reward helpful=models/beaver-reward --reward harmless=models/beaver-cost
      parm-mlx evaluate --out strengths --limit 24 --grid 0.5 --beta 0.5,1,2
      parm-mlx evaluate --out fast --limit 24 --guidance one-pass --fidelity
      parm-mlx evaluate --compare run other-run --out comparison
    """
    if out is None:
        raise InputError("--out is missing, the folder to write", hint="for instance --out run")
    from parm_mlx.evaluation.evaluate import compare_runs
    from parm_mlx.evaluation.evaluate import evaluate as evaluate_one
    from parm_mlx.evaluation.report.formatting import table
    from parm_mlx.evaluation.report.page import METRICS_FILE, PAGE_FILE
    from parm_mlx.evaluation.strengths import COMPARISON, evaluate_strengths
    from parm_mlx.guidance.sampling import Sampling

    run: Callable[..., dict[str, Any] | None] = evaluate_one
    page = out
    how: Any = {"normalize": normalize, "reference": reference, "bootstrap": bootstrap, "note": console.note}
    if compare:
        for name in context.params.keys() - how.keys() - {"runs", "out", "compare", "as_json"}:
            if is_given(context, name):
                raise InputError(f"--{name.replace('_', '-')} cannot be used with --compare: the runs are done already")
        summary: dict[str, Any] | None = compare_runs(runs or [], out, **how)
    elif runs:
        raise InputError(f"{runs[0]}: folders of runs go with --compare", hint="a new run takes --out alone")
    else:
        console.blas_hint()
        named = asdict(models)
        if len(models.parm or [""]) == 1 and len(betas := (models.beta or "").split(",")) > 1:
            run, named["betas"] = evaluate_strengths, [check_beta(each) for each in betas]
            del named["beta"]
            page = out / COMPARISON
        try:
            with sharded(models.shard, True, batch_size=batch_size, max_tokens=max_tokens, **asdict(sampling)) as shard:
                named["shard"] = shard
                summary = run(
                    out=out,
                    prompts=prompts,
                    limit=limit,
                    alphas=alphas,
                    grid=grid,
                    rewards=reward,
                    sampling=Sampling(**asdict(sampling)),
                    max_tokens=max_tokens,
                    num_samples=num_samples,
                    batch_size=batch_size,
                    fidelity=fidelity,
                    resume_anyway=resume_anyway,
                    progress=console.progress,
                    **how,
                    **named,
                    **asdict(drafts),
                )
        except KeyboardInterrupt as reason:
            console.note(str(reason) or "interrupted")
            raise typer.Exit(console.INTERRUPTED) from None
    if summary is not None:
        if as_json:
            console.record(summary)
        else:
            console.echo(table(summary))
        console.note(f"{page / PAGE_FILE}  {page / METRICS_FILE}")
