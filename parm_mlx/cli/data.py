"""``parm-mlx data``: shows preference data, writes any format of it as ours, and labels it by reward models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import Json, declared, flag, grouped, path_or_id
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import SEED, SHARE
from parm_mlx.settings import PATH, TemplateName
from parm_mlx.training.config import TrainConfig

if TYPE_CHECKING:
    from parm_mlx.data.relabel import Relabelled

app = typer.Typer(rich_markup_mode=None)

Source = Annotated[
    str, typer.Argument(metavar="DATA", help="A file, a folder or a hub id, as for train --data.", parser=path_or_id)
]
Objectives = Annotated[tuple[str, ...] | None, declared(TrainConfig, "objectives")]
SkipBad = Annotated[bool, declared(TrainConfig, "skip_bad")]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Look at preference data, bring it into our format, and label it by reward models.

    DATA is a file, a folder of files (splits, or one per objective), a folder of such folders (one per objective), or
    a data set on the Hugging Face hub: owner/name, or owner/name:folder,folder for some of its folders.

    A row of any format is one JSON object; a file has one format, which is detected. It may be compressed with gzip.

    \b
      {"prompt": "…", "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
      {"prompt": "…", "chosen": "…", "rejected": "…", "objective": "helpful"}
      {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": […], "objective": …}   conversations
      {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …, "objective": …}   HH-RLHF
      {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}   PKU-SafeRLHF

    Without "objective", the name of the file or folder tells it, or --objectives with one name.

    \b
    Examples:
      parm-mlx data inspect pairs.jsonl --model base
      parm-mlx data inspect Anthropic/hh-rlhf:harmless-base,helpful-base
      parm-mlx data prepare safe-rlhf.jsonl.gz --out pairs
      parm-mlx data relabel pairs.jsonl --reward warmth=warmth --reward brevity=brevity --out relabelled.jsonl
    """
    if context.invoked_subcommand is None:
        console.echo(context.get_help())


@grouped
def inspect(
    source: Source,
    model: Annotated[
        str | None, flag("Backbone to train: its tokenizer measures lengths.", PATH, default_text="no lengths")
    ] = None,
    max_seq_length: Annotated[int, declared(TrainConfig, "max_seq_length")] = 1024,
    chat_template: Annotated[TemplateName | None, declared(TrainConfig, "chat_template")] = None,
    objectives: Objectives = None,
    as_json: Json = False,
) -> None:
    """Show what is in preference data, and what training would keep and drop.

    \b
    Examples:
      parm-mlx data inspect pairs.jsonl
      parm-mlx data inspect pairs/ --model base --max-seq-length 512 --json
    """
    from parm_mlx.data.inspect import inspect_data
    from parm_mlx.files import resolve
    from parm_mlx.mlxlm import config_rows, load_tokenizer_alone

    path = resolve(model) if model else None
    found = inspect_data(
        source,
        objectives=objectives and parse_objectives(objectives),
        tokenizer=load_tokenizer_alone(path) if path else None,
        max_length=max_seq_length,
        chat_template=chat_template,
        embeddings=config_rows(path) if path else None,
        progress=console.progress,
    )
    if as_json:
        console.record(found)
    else:
        console.echo("\n".join(_inspection_lines(found)))


@grouped
def prepare(
    source: Source,
    out: Annotated[Path, flag("Folder to write.")],
    valid_share: Annotated[float, flag("Share of the prompts for validation; 0: none.", SHARE)] = 0.1,
    test_share: Annotated[float, flag("Share of the prompts for testing; 0: none.", SHARE)] = 0.1,
    seed: Annotated[int, flag("Seed of the split.", SEED)] = 0,
    objectives: Objectives = None,
    skip_bad: SkipBad = False,
    force: Annotated[bool, flag("Replace prepared data that exists at --out.")] = False,
) -> None:
    """Write preference data in our format, split by prompt into train, valid and test.

    The folder appears whole or not at all. Splits that exist are made again. Rows of the same pair become one with the
    labels of all of them. Rows whose responses are equal, and labels that contradict each other, are left out and
    counted.

    \b
    Examples:
      parm-mlx data prepare safe-rlhf.jsonl.gz --out pairs --seed 1
      parm-mlx data prepare hh/ --out pairs --test-share 0 --skip-bad
      parm-mlx data prepare PKU-Alignment/PKU-SafeRLHF-10K --out pairs
    """
    from parm_mlx.data.prepare import prepare as run

    notes = run(
        source,
        out,
        objectives=objectives and parse_objectives(objectives),
        valid_share=valid_share,
        test_share=test_share,
        seed=seed,
        skip_bad=skip_bad,
        force=force,
        progress=console.progress,
    )
    console.echo(out)
    for note in notes:
        console.note(note)


@grouped
def relabel(
    source: Source,
    reward: Annotated[
        list[str],
        flag(
            "What labels the objective NAME: a built-in scorer, a reward model (directory or hub id), hf:ID, or "
            "module:function; once for each objective.",
            metavar="NAME=SPEC",
        ),
    ],
    out: Annotated[Path, flag("File to write, .jsonl.")],
    min_margin: Annotated[
        list[str] | None,
        flag(
            "Smallest lead in score that is a label, for one objective or for all.",
            metavar="[NAME=]NUMBER",
            default_text="any lead",
        ),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Label pairs by reward models: each prefers the response that it scores higher.

    Both responses of every pair are scored; labels of the data are not used. The rows written have "preferred", and
    "margins": by how much the preferred response is ahead. Ties are not labelled, nor are leads below --min-margin; a
    pair without any label is dropped. All of it is counted. The file appears whole or not at all, and replaces none.

    \b
    Examples:
      parm-mlx data relabel pairs.jsonl --reward warmth=warmth --reward brevity=brevity --out relabelled.jsonl
      parm-mlx data relabel PKU-Alignment/PKU-SafeRLHF-10K --out safe.jsonl --min-margin 0.5 \\
          --reward helpful=models/beaver-reward --reward harmless=models/beaver-cost
    """
    from parm_mlx.data.relabel import check_output, parse_min_margins
    from parm_mlx.data.relabel import relabel as run
    from parm_mlx.data.sources import find_files
    from parm_mlx.rewards.registry import load_rewards

    check_output(out)
    find_files(source)  # a wrong DATA is told before models are loaded
    rewards = load_rewards(reward)
    margins = parse_min_margins(min_margin or [], list(rewards))
    done = run(source, rewards, out, min_margin=margins, skip_bad=skip_bad, progress=console.progress)
    console.echo(out)
    for line in _relabelled_lines(done):
        console.note(line)


app.command("inspect", short_help="Show what is in preference data.")(inspect)
app.command("prepare", short_help="Write any format as ours, split by prompt.")(prepare)
app.command("relabel", short_help="Label pairs by reward models.")(relabel)


def _relabelled_lines(done: "Relabelled") -> list[str]:
    left_out = {
        "rows have two equal responses": done.equal,
        "rows are of the same pair as an earlier row": done.repeated,
        "pairs get no label": done.dropped,
    }
    return [
        f"{done.rows} rows read, {done.written} pairs relabelled",
        *(f"left out: {count} {reason}" for reason, count in left_out.items() if count),
        *(
            f"{name}: {count} labels, {done.ties[name]} ties, {done.near_ties[name]} below the smallest margin"
            for name, count in done.labels.items()
        ),
        *(_disagreement_line(names, both, differ) for names, (both, differ) in done.disagreement.items() if both),
        *([done.bad.note()] if done.bad.count else []),
    ]


def _disagreement_line(objectives: Sequence[str], both: int, differ: int) -> str:
    return f"{' and '.join(objectives)} disagree in {differ} of {both} pairs ({differ / both:.0%})"


def _inspection_lines(found: dict[str, Any]) -> list[str]:
    from parm_mlx.data.pairs import Problems

    lines = [f"{name}: {form}" for name, form in found["files"].items()]
    lines.append(f"objectives: {', '.join(found['objectives'])}")
    for each in found["disagreement"]:
        lines.append(_disagreement_line(each["objectives"], each["judged_by_both"], each["differ"]))
    for split in found["splits"]:
        lines += ["", *_split_lines(split, found["max_seq_length"])]
    if len(found["splits"]) == 1:
        lines += ["", "there is no valid split: training holds out a tenth of the prompts, at most 500"]
    if shared := [f"{each['prompts']} by {' and '.join(each['splits'])}" for each in found["shared_prompts"]]:
        lines += ["", f"prompts shared: {', '.join(shared)}"]
    if bad := Problems(found["bad_rows"]["count"], found["bad_rows"]["first"]).note():
        lines += ["", bad, "training needs --skip-bad to leave them out"]
    return lines


def _split_lines(split: dict[str, Any], limit: int | None) -> list[str]:
    lines = [
        f"{split['name']}: {split['rows']} rows",
        f"  prompts          {split['prompts']} different; {split['repeated_prompts']} rows repeat one",
        f"  labels           {_named(split['labels'])}",
        f"  equal responses  {split['equal_responses']}",
        f"  merged           {split['merged_rows']} rows are of the same pair as an earlier one",
        f"  contradictions   {_named(split['contradictions'])}",
        f"  pairs            {_named(split['pairs'])}; {split['pairs_of_several_objectives']} for several objectives",
    ]
    if split["token_percentiles"]:
        shares = ", ".join(f"{share}%: {value}" for share, value in split["token_percentiles"].items())
        lines.append(f"  tokens           {shares} (limit {limit})")
    dropped = "".join(f"; {count} dropped: {reason}" for reason, count in split["dropped"].items())
    return [*lines, f"  training         {split['kept']} kept{dropped}"]


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
