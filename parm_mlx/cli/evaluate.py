"""``parm-mlx evaluate``: prompts × preferences → answers, scores, HV, MIP, pictures and a report."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from parm_mlx.cli import console, options
from parm_mlx.errors import InputError
from parm_mlx.ranges import ANSWERS, BATCH, COUNT, SAMPLES, Real

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
    from parm_mlx.evaluation.evaluate import METRICS_FILE, compare_runs
    from parm_mlx.evaluation.evaluate import evaluate as run
    from parm_mlx.evaluation.report.formatting import table
    from parm_mlx.guidance.sampling import Sampling

    summary: dict[str, Any] | None
    if compare:
        _no_more_than_compare(context)
        how: Any = {"normalize": normalize, "reference": point, "bootstrap": bootstrap}
        summary = compare_runs(runs or [], out, **how, note=console.note)
    elif runs:
        raise InputError(f"{runs[0]}: folders of runs go with --compare", hint="a new run takes --out alone")
    else:
        console.blas_hint()
        try:
            summary = run(
                out=out,
                model=model,
                parm=parm,
                guide_model=guide_model,
                prompts=prompts,
                limit=limit,
                alphas=alphas,
                grid=grid,
                rewards=reward,
                beta=beta,
                sampling=Sampling(temp, top_p, top_k, min_p, seed),
                max_tokens=max_tokens,
                num_samples=num_samples,
                system_prompt=system_prompt,
                chat_template=chat_template,
                share=share,
                draft_model=draft_model,
                self_speculation=self_speculation,
                num_draft_tokens=num_draft_tokens,
                batch_size=batch_size,
                normalize=normalize,
                reference=point,
                bootstrap=bootstrap,
                resume_anyway=resume_anyway,
                note=console.note,
                progress=console.progress,
            )
        except KeyboardInterrupt as reason:
            console.note(str(reason) or "interrupted")
            raise typer.Exit(console.INTERRUPTED) from None
    if summary is not None:
        if as_json:
            console.record(summary)
        else:
            console.echo(table(summary))
        console.note(f"{out / 'report.html'}  {out / METRICS_FILE}")


def _no_more_than_compare(context: typer.Context) -> None:
    allowed = {"runs", "out", "compare", "normalize", "reference", "bootstrap", "as_json"}
    for name in context.params.keys() - allowed:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} cannot be used with --compare: the runs are done already")


def _reference(spec: str | None) -> list[float] | None:
    if spec is None:
        return None
    try:
        return [SCORE.read(part) for part in spec.split(",")]
    except ValueError as reason:
        raise InputError(f"--reference {spec}: each number {reason}", hint="for instance --reference -2,-2") from None
