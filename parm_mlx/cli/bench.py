"""``parm-mlx bench``: how fast guided decoding is on this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parm_mlx.cli import console, options
from parm_mlx.diagnostics.plan import Plan, Size
from parm_mlx.errors import InputError, OutputError
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.preference import parse_betas

if TYPE_CHECKING:
    from parm_mlx.diagnostics.bench import Row
    from parm_mlx.diagnostics.subjects import Subjects

# Load per core above which the machine counts as busy.
BUSY = 0.3


def bench(
    batch: Annotated[
        str, typer.Option("--batch", help="Numbers of sequences at once, each with its own α.")
    ] = "1,4,16",
    prompt: Annotated[str, typer.Option("--prompt", help="Prompt lengths, in tokens.")] = "64,256",
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens decoded of each sequence in a round.")] = 24,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds; figures are medians over them.")] = 3,
    hidden: Annotated[
        int | None, typer.Option("--hidden", help="Size of the random models' hidden states.", show_default="512")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", help="Number of the random models' layers.", show_default="8")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", help="Number of tokens the random models know.", show_default="8000")
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Quantise the random models to this width.", show_default="float32")
    ] = None,
    model: options.OwnModel = None,
    parm: options.OwnParms = None,
    guide_model: options.GuideModel = None,
    beta: options.Beta = "1.0",
    draft_model: options.OwnDraftModel = None,
    num_draft_tokens: options.NumDraftTokens = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the figures into this file (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Measure the speed of guided decoding against its floor and against unguided decoding.

    Without --parm the models are Llamas with random weights, which are as fast as trained ones. Every number of
    sequences is measured at the first prompt length, and every prompt length at the first number of sequences.

    \b
      base      the base model alone: unguided decoding
      guide     the guide alone; base and guide one after the other are the floor
      guided    base and guide, two models
      shared    base and guide on the same weights, in one forward pass
      +self     speculative: the base drafts tokens, and the guide checks several at once
      +draft    speculative: a draft model drafts; for random models, a quarter of the base's layers

    All take turns of a few tokens, so that a machine that slows down slows them all. Prefill and decode are tokens/s,
    prefill up to the first token, decode with the lowest and the highest round in brackets. "floor" is time(base) +
    time(guide) over the time of a case, "unguided" is time(base) over it, MB the peak memory, "drafts" the share that
    is accepted: it depends on the models, and random ones say nothing about trained ones.

    Ctrl-C stops and reports the rounds that are done.

    \b
    Examples:
      parm-mlx bench
      parm-mlx bench --batch 1,2,4,8,16,32 --prompt 64,512,2048 --plot speed.png
      parm-mlx bench --hidden 1024 --layers 16 --bits 4 --rounds 9 --json > speed.json
      parm-mlx bench --model base --parm my-parm --batch 1 --tokens 128
    """
    plan = Plan(_numbers("--batch", batch), _numbers("--prompt", prompt), tokens, rounds)
    if plot:
        _check_plot(plot)
    sizes = {"hidden": hidden, "layers": layers, "vocabulary": vocabulary, "bits": bits}
    subjects, described = _subjects(sizes, model, parm, guide_model, beta, draft_model, num_draft_tokens)

    from parm_mlx.diagnostics.bench import check_batches, draw, measure, summarise
    from parm_mlx.machine import load_per_core

    check_batches(subjects, plan)
    load = load_per_core()
    if load > BUSY:
        console.note(f"this machine is busy (load {load:.1f} per core): ratios suffer less than times, but both suffer")

    done: dict[tuple[int, int], list[Row]] = {}
    with stop_on_interrupt() as stopped:
        for cases in console.progress(measure(subjects, plan, stopped), plan.steps, "rounds"):
            if cases[0].samples:
                done[cases[0].batch, cases[0].prompt] = summarise(cases)
    rows = [row for group in done.values() for row in group]
    if as_json:
        console.record(_record(described, plan, rows, load, complete=not stopped()))
    elif rows:
        _show(list(done.values()))
    if plot and rows:
        from parm_mlx.outputs import new_file

        with new_file(plot) as partial:
            draw(rows, partial)
        console.note(f"picture: {plot}")
    if stopped():
        console.note(
            "stopped: " + ("the figures are those of the rounds that were done" if rows else "no round was done")
        )
        raise typer.Exit(console.INTERRUPTED)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} takes whole numbers with commas between, got {text!r}", hint=f"{option} 1,4,16"
        ) from None


def _check_plot(plot: Path) -> None:
    """Refuses a picture that could not be drawn, before the time is spent."""
    from parm_mlx.drawing import INSTALL, can_draw
    from parm_mlx.outputs import check_new_file

    if not can_draw():
        raise InputError("--plot needs matplotlib, which is not installed", hint=INSTALL)
    if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot draws .png, .svg or .pdf files, got {plot.name}")
    check_new_file(plot)
    if not plot.absolute().parent.is_dir():
        raise OutputError(f"{plot} cannot be written: there is no directory {plot.parent}")


def _subjects(
    sizes: dict[str, int | None],
    model: str | None,
    parm: list[str] | None,
    guide_model: str | None,
    beta: str,
    draft_model: str | None,
    num_draft_tokens: int | None,
) -> "tuple[Subjects, dict[str, Any]]":
    """The models to measure, and what the report says about them."""
    given = {name: value for name, value in sizes.items() if value is not None}
    size, betas = Size(**given), parse_betas(beta, len(parm or [""]))
    if parm and given:
        raise InputError(f"--{', --'.join(given)} is for random models, and --parm names models of your own")
    if not parm and (model or guide_model or draft_model):
        raise InputError(
            "--model, --guide-model and --draft-model need --parm, the adapter that guides",
            hint="or leave all out for random models",
        )
    console.blas_hint()
    from parm_mlx.diagnostics.subjects import loaded_subjects, random_subjects
    from parm_mlx.guidance.speculation import Drafting

    drafted = num_draft_tokens or Drafting.tokens
    if not parm:
        return random_subjects(size, drafted), asdict(size) | {"drafted": drafted}
    described = {"model": model, "parm": parm, "guide_model": guide_model, "beta": betas, "draft_model": draft_model}
    subjects = loaded_subjects(model, parm, guide_model, betas, draft_model, drafted)
    return subjects, described | {"drafted": drafted}


def _record(described: dict[str, Any], plan: Plan, rows: "list[Row]", load: float, complete: bool) -> dict[str, Any]:
    from parm_mlx.machine import device_name, versions

    return {
        "models": described,
        "settings": asdict(plan),
        "machine": versions() | {"device": device_name(), "load_per_core": round(load, 2)},
        "complete": complete,
        "cases": rows,
    }


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
