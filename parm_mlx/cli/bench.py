"""``parm-mlx bench``: how fast guided decoding is on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import DraftOptions, GuideOptions, Json, declared, flag, grouped, redeclared
from parm_mlx.diagnostics.plan import HIDDEN, LAYERS, PROMPT, ROUNDS, TOKENS, VOCABULARY, Plan, Size
from parm_mlx.errors import InputError, OutputError
from parm_mlx.files import is_dir
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.preference import parse_betas
from parm_mlx.ranges import BATCH, Whole
from parm_mlx.settings import PATH, Items

if TYPE_CHECKING:
    from parm_mlx.diagnostics.bench import Row
    from parm_mlx.diagnostics.subjects import Subjects

# Load per core above which the machine counts as busy.
BUSY = 0.3


@dataclass(frozen=True)
class BenchModels(GuideOptions):
    """The models to measure; random ones where none is named."""

    model: str | None = redeclared(
        GuideOptions, "model", default_text="--guide-model, or the backbone of --parm", env=False
    )
    guide_model: str | None = redeclared(GuideOptions, "guide_model", env=False)
    beta: str | None = redeclared(GuideOptions, "beta", env=False)
    parm: list[str] | None = redeclared(GuideOptions, "parm", default_text="random models", env=False)


@grouped
def bench(
    batch: Annotated[
        tuple[int, ...], flag("Numbers of sequences at once, each with its own α.", Items(BATCH))
    ] = Plan.batches,
    prompt: Annotated[tuple[int, ...], flag("Prompt lengths, in tokens.", Items(PROMPT))] = Plan.prompts,
    tokens: Annotated[int, flag("Tokens decoded of each sequence in a round.", TOKENS)] = Plan.tokens,
    rounds: Annotated[int, flag("Rounds; figures are medians over them.", ROUNDS)] = Plan.rounds,
    hidden: Annotated[
        int | None, flag("Size of the random models' hidden states, a multiple of 64.", HIDDEN, default_text="512")
    ] = None,
    layers: Annotated[int | None, flag("Number of the random models' layers.", LAYERS, default_text="8")] = None,
    vocabulary: Annotated[
        int | None, flag("Number of tokens the random models know.", VOCABULARY, default_text="8000")
    ] = None,
    bits: Annotated[
        int | None,
        flag("Quantise the random models to this width: 2, 3, 4, 5, 6 or 8.", Whole(2, 8), default_text="float32"),
    ] = None,
    models: BenchModels = BenchModels(),
    draft_model: Annotated[
        str | None, flag("Draft model to measure, beside models of your own.", PATH, default_text="none")
    ] = None,
    num_draft_tokens: Annotated[int | None, declared(DraftOptions, "num_draft_tokens")] = None,
    as_json: Json = False,
    plot: Annotated[Path | None, flag("Draw the figures into this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Measure the speed of guided decoding against its floor and against unguided decoding.

    Without --parm the models are Llamas with random weights, which are as fast as trained ones. Every number of
    sequences is measured at the first prompt length, and every prompt length at the first number of sequences.

    \b
      base      the base model alone: unguided decoding
      guide     the guide alone; base and guide one after the other are the floor
      guided    base and guide, two models
      shared    base and guide on the same weights, in one forward pass
      one-pass  one network that stands for both, in place of them
      +guide    speculative: the guide drafts tokens, and the base checks several at once
      +base     speculative: the base drafts tokens, and the guide checks several at once
      +draft    speculative: a draft model drafts; for random models, a quarter of the base's layers

    All take turns of a few tokens, so that a machine that slows down slows them all. Prefill and decode are tokens/s,
    prefill up to the first token, decode with the lowest and the highest round in brackets. "floor" is time(base) +
    time(guide) over the time of a case, "unguided" is time(base) over it, MB the peak memory, "drafts" the share that
    is accepted: it depends on the models, and random ones say nothing about trained ones. Below the table stand the
    passes of base and guide for each token of an answer with drafts.

    Ctrl-C stops and reports the rounds that are done.

    \b
    Examples:
      parm-mlx bench
      parm-mlx bench --batch 1,2,4,8,16,32 --prompt 64,512,2048 --plot speed.png
      parm-mlx bench --hidden 1024 --layers 16 --bits 4 --rounds 9 --json > speed.json
      parm-mlx bench --model base --parm my-parm --batch 1 --tokens 128
    """
    plan = Plan(batch, prompt, tokens, rounds)
    if plot:
        _check_plot(plot)
    sizes = {"hidden": hidden, "layers": layers, "vocabulary": vocabulary, "bits": bits}
    subjects, described = _subjects(sizes, models, draft_model, num_draft_tokens)

    from parm_mlx.diagnostics.bench import check_batches, draw, measure, pass_ratios, summarise
    from parm_mlx.machine import device_name, load_per_core, versions

    check_batches(subjects, plan)
    load = load_per_core()
    if load > BUSY:
        console.note(f"this machine is busy (load {load:.1f} per core): ratios suffer less than times, but both suffer")

    done: dict[tuple[int, int], list[Row]] = {}
    with stop_on_interrupt() as stopped:
        for cases in console.progress(measure(subjects, plan, stopped), plan.steps, "rounds"):
            if cases[0].samples:
                done[cases[0].batch, cases[0].prompt] = summarise(cases)
        ratios = {} if stopped() else pass_ratios(subjects, plan)
    rows = [row for group in done.values() for row in group]
    if as_json:
        machine = versions() | {"device": device_name(), "load_per_core": round(load, 2)}
        settings, complete = asdict(plan), not stopped()
        console.record(
            {"models": described, "settings": settings, "machine": machine, "complete": complete, "cases": rows}
            | ({"passes": ratios} if ratios else {})
        )
    elif rows:
        _show(list(done.values()))
        if ratios:
            for name, values in ratios.items():
                longer = ", ".join(f"{r:.2f} for {m}" for m, r in values.items() if m > 1)
                console.echo(f"a pass of the {name} takes, of one over a single token: {longer} tokens")
    if plot and rows:
        from parm_mlx.outputs import new_file

        with new_file(plot) as partial:
            draw(rows, partial)
        console.note(f"picture: {plot}")
    if stopped():
        console.note(
            f"stopped: {'the figures are those of the rounds that were done' if rows else 'no round was done'}"
        )
        raise typer.Exit(console.INTERRUPTED)


def _check_plot(plot: Path) -> None:
    """Refuses a picture that could not be drawn, before the time is spent."""
    from parm_mlx.drawing import INSTALL, can_draw
    from parm_mlx.outputs import check_new_file

    if not can_draw():
        raise InputError("--plot needs matplotlib, which is not installed", hint=INSTALL)
    if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot draws .png, .svg or .pdf files, got {plot.name}")
    check_new_file(plot)
    if not is_dir(plot.absolute().parent, OutputError):
        raise OutputError(f"{plot} cannot be written: there is no directory {plot.parent}")


def _subjects(
    sizes: dict[str, int | None], models: BenchModels, draft_model: str | None, num_draft_tokens: int | None
) -> "tuple[Subjects, dict[str, Any]]":
    """The models to measure, and what the report says about them."""
    given = {name: value for name, value in sizes.items() if value is not None}
    size, betas = Size(**given), parse_betas(models.beta or 1.0, len(models.parm or [""]))
    if models.parm and given:
        raise InputError(f"--{', --'.join(given)} is for random models, and --parm names models of your own")
    if not models.parm and (models.model or models.guide_model or draft_model):
        raise InputError(
            "--model, --guide-model and --draft-model need --parm, the adapter that guides",
            hint="or leave all out for random models",
        )
    console.blas_hint()
    from parm_mlx.diagnostics.subjects import loaded_subjects, random_subjects
    from parm_mlx.guidance.speculation import Drafting

    drafted = num_draft_tokens or Drafting.tokens
    if not models.parm:
        return random_subjects(size, drafted), asdict(size) | {"drafted": drafted}
    described = asdict(models) | {"beta": betas, "draft_model": draft_model, "drafted": drafted}
    subjects = loaded_subjects(
        models.model, models.parm, models.guide_model, betas, draft_model, drafted, models.dequantize
    )
    return subjects, described


def _show(groups: "list[list[Row]]") -> None:
    from rich.table import Table

    from parm_mlx.machine import describe_machine

    for rows in groups:
        batch, prompt = rows[0]["batch"], rows[0]["prompt"]
        title = f"{batch} {'sequence' if batch == 1 else 'sequences'}, prompts of {prompt} tokens; tokens/s"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        headings = ["case", "prefill", "decode", "", "floor", "unguided", "MB"]
        drafting = any(row["accepted"] is not None for row in rows)
        for heading in headings + ["drafts"] * drafting:
            table.add_column(heading, justify="left" if heading in ("", "case") else "right", no_wrap=True)
        for row in rows:
            accepted = "" if row["accepted"] is None else f"{row['accepted']:.0%}"
            table.add_row(*_cells(row), *[accepted] * drafting)
        console.stdout().print(table)
        if drafting:
            passes = {row["case"]: row["passes"] for row in rows if row["passes"] is not None}
            counts = ", ".join(f"{name} {base:.2f} + {guide:.2f}" for name, (base, guide) in passes.items())
            console.echo(f"passes of base + guide for a token: {counts}")
        console.echo()
    console.note(describe_machine())


def _cells(row: "Row") -> list[str]:
    """Returns the cells of a row; a ratio of a case to itself is left empty."""
    low, high = row["decode_tokens_per_second_spread"]
    alone = row["case"] in ("base", "guide")
    return [
        row["case"],
        f"{row['prefill_tokens_per_second']:.0f}",
        f"{row['decode_tokens_per_second']:.1f}",
        f"[{low:.1f}–{high:.1f}]",
        "" if alone else f"{row['of_floor']:.2f}",
        "" if row["case"] == "base" else f"{row['of_unguided']:.2f}",
        f"{row['peak_mb']:.0f}",
    ]
