"""``parm-mlx data``: makes preference data, shows them, writes any format as ours, and labels by reward models."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import Json, MaxTokens, ModelOptions, declared, flag, grouped, path_or_id
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import ANSWERS, BATCH, COUNT, SEED, SHARE
from parm_mlx.settings import PATH, SamplingSettings, TemplateName
from parm_mlx.training.config import TrainConfig

if TYPE_CHECKING:
    from parm_mlx.data.relabel import Relabelled
    from parm_mlx.data.sample import Sampled

app = typer.Typer(rich_markup_mode=None)

Source = Annotated[
    str, typer.Argument(metavar="DATA", help="A file, a folder or a hub id, as for train --data.", parser=path_or_id)
]
Objectives = Annotated[tuple[str, ...] | None, declared(TrainConfig, "objectives")]
SkipBad = Annotated[bool, declared(TrainConfig, "skip_bad")]
Reward = Annotated[
    list[str],
    flag(
        "What labels the objective NAME: a built-in scorer, a reward model (directory or hub id), hf:ID, or "
        "module:function; once for each objective.",
        metavar="NAME=SPEC",
    ),
]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Make preference data, look at them, bring them into our format, and label them by reward models.

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
      parm-mlx data sample --model base --prompts questions.txt --reward kind=my_rewards:kind --out samples
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
    reward: Reward,
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


@grouped
def sample(
    model: Annotated[str, flag("Model that answers: directory or hub id.", PATH)],
    reward: Reward,
    out: Annotated[Path, flag("Folder of answers, scores and pairs.jsonl.")],
    prompts: Annotated[Path | None, flag("File of prompts, as for evaluate.", default_text="--magpie")] = None,
    magpie: Annotated[
        int | None,
        flag("Let the model write so many prompts itself, as a user's turn.", COUNT, default_text="--prompts"),
    ] = None,
    num_samples: Annotated[int, flag("Answers to each prompt.", ANSWERS)] = 4,
    system_prompt: Annotated[
        list[str] | None,
        flag(
            "System message of some of the answers; several take turns, to spread the answers. none: without one.",
            default_text="none",
            metavar="<str>",
        ),
    ] = None,
    sampling: SamplingSettings = SamplingSettings(temp=0.8, top_p=0.95),
    max_tokens: MaxTokens = 128,
    chat_template: Annotated[TemplateName | None, declared(ModelOptions, "chat_template")] = None,
    min_margin: Annotated[
        list[str] | None,
        flag(
            "Smallest lead in score that is a label, for one objective or for all; in standard deviations of its "
            "scores with sd after the number.",
            metavar="[NAME=]NUMBER[sd]",
            default_text="0.25sd",
        ),
    ] = None,
    even_length: Annotated[
        float, flag("By how much the longer answer of a pair may be longer, as a share of it; 1: no limit.", SHARE)
    ] = 0.3,
    trim: Annotated[
        Literal["on", "off"], flag("Cut unfinished answers after their last sentence; their end is not learned.")
    ] = "on",
    pairs: Annotated[
        Literal["best", "conflict", "all"],
        flag(
            "Pairs of the answers to a prompt: for each objective the one that it sees furthest apart, three in which "
            "objectives disagree, or all."
        ),
    ] = "best",
    batch_size: Annotated[int, flag("Most answers that are generated at the same time.", BATCH)] = 16,
    resume_anyway: Annotated[
        bool, flag("Go on also where the model or rewards have changed; run.json records it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make preference pairs: a model answers, rewards score, and answers to one prompt are compared.

    Answers and scores are kept in --out as they come: after Ctrl-C, a kill or a full disk the same command goes on.
    With another choice of pairs (--pairs, --min-margin, --even-length) or other rewards it uses the same answers again.
    Under mlx.launch several processes share the work.

    \b
    Examples:
      parm-mlx data sample --model base --prompts questions.txt --out samples \\
          --reward kind=my_rewards:kind --reward short=brevity
      parm-mlx data sample --model base --magpie 200 --out samples --reward cheer=cheer --reward formality=formality \\
          --system-prompt none --system-prompt "You are a cheerful friend." --system-prompt "Answer formally."
      parm-mlx train --model base --data samples/pairs.jsonl --out parm
    """
    from parm_mlx.data.sample import PAIRS_FILE
    from parm_mlx.data.sample import sample as run
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.rewards.registry import load_rewards

    console.blas_hint()
    try:
        done = run(
            model,
            load_rewards(reward),
            out,
            prompts=prompts,
            magpie=magpie,
            num_samples=num_samples,
            system_prompts=system_prompt or [],
            sampling=Sampling(**asdict(sampling)),
            max_tokens=max_tokens,
            chat_template=chat_template,
            min_margin=min_margin or [],
            even_length=even_length,
            trim=trim == "on",
            pairs=pairs,
            batch_size=batch_size,
            resume_anyway=resume_anyway,
            note=console.note,
            progress=console.progress,
        )
    except KeyboardInterrupt as reason:
        console.note(str(reason) or "interrupted")
        raise typer.Exit(console.INTERRUPTED) from None
    if done is None:
        return
    if as_json:
        console.record(_sampled_record(done))
    else:
        console.echo(out / PAIRS_FILE)
        for line in _sampled_lines(done):
            console.note(line)
    for warning in done.warnings():
        console.note(f"warning: {warning}")


app.command("sample", short_help="Make pairs: a model answers, rewards score.")(sample)
app.command("inspect", short_help="Show what is in preference data.")(inspect)
app.command("prepare", short_help="Write any format as ours, split by prompt.")(prepare)
app.command("relabel", short_help="Label pairs by reward models.")(relabel)


def _sampled_lines(done: "Sampled") -> list[str]:
    left_out = f"; {done.dropped} of them without a whole sentence are left out" if done.dropped else ""
    width = max(map(len, [*done.scores, "length"]))
    columns = {**done.scores, "length": done.length}
    return [
        f"{done.answers} answers to {done.prompts} prompts; {done.unfinished} unfinished{left_out}",
        f"{'':{width}}      mean        sd       low      high",
        *(
            f"{name:{width}} {each.mean:9.3g} {each.deviation:9.3g} {each.low:9.3g} {each.high:9.3g}"
            for name, each in columns.items()
        ),
        *(f"correlation within prompts of {a} and {b}: {value:.2f}" for (a, b), value in done.correlation.items()),
        f"{done.pairs} pairs; labels: {_named(done.labels)}",
        *(_disagreement_line(names, both, differ) for names, (both, differ) in done.disagreement.items() if both),
    ]


def _sampled_record(done: "Sampled") -> dict[str, Any]:
    return {
        **asdict(done),
        "correlation": [{"of": names, "value": value} for names, value in done.correlation.items()],
        "disagreement": [
            {"objectives": names, "judged_by_both": both, "differ": differ}
            for names, (both, differ) in done.disagreement.items()
        ],
    }


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
    if all(split["name"] != "valid" for split in found["splits"]):
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
