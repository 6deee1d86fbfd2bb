"""``parm-mlx generate``: answers to prompts, at one or several preferences."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.answers import Clock, Job, answers, requests, stream
from parm_mlx.cli.options import BASE_ALONE, Alphas, DraftOptions, MaxTokens, ModelOptions, flag, grouped
from parm_mlx.cli.reply import say
from parm_mlx.cli.session import (
    across_count,
    note_across,
    note_drafts,
    open_session,
    read_alpha,
    sharded,
    stopping_together,
)
from parm_mlx.errors import DataError, InputError
from parm_mlx.files import decoded
from parm_mlx.preference import format_alpha
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.generate import Answer
    from parm_mlx.guidance.session import Session


@grouped
def generate(
    text: Annotated[str | None, typer.Argument(help="The prompt.", metavar="PROMPT", show_default=False)] = None,
    prompt: Annotated[
        list[str] | None,
        flag(
            'The prompt; "-" reads it from stdin, as does no prompt. May be repeated.',
            name="--prompt",
            short="-p",
            metavar="<str>",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, flag('File of prompts: .txt, one per line, or .jsonl, .json or .csv with "prompt".')
    ] = None,
    alpha: Alphas = None,
    models: ModelOptions = ModelOptions(),
    sampling: SamplingSettings = SamplingSettings(),
    max_tokens: MaxTokens = 256,
    drafts: DraftOptions = DraftOptions(),
    ignore_chat_template: Annotated[bool, flag("Continue the prompt as plain text.")] = False,
    as_json: Annotated[bool, flag("Print one JSON object per answer.", name="--json")] = False,
    explain: Annotated[bool, flag("With --json, tell what base and guide gave each token.")] = False,
    explain_parts: Annotated[
        bool, flag("With --guidance one-pass, tell what base and guide gave each token, too; takes a pass of each.")
    ] = False,
) -> None:
    """Answer prompts, at one or several preferences.

    One answer is printed as it comes. Several are generated in one batch, however many prompts and preferences there
    are; one after the other where a drafter is named (--draft-model, --speculation guide or base).

    \b
    Examples:
      parm-mlx generate "How do I bake bread?" --alpha 1,0
      parm-mlx generate "How do I bake bread?" --alpha base --alpha 1,0 --alpha 0,1
      parm-mlx generate --prompts questions.txt --alpha cheer=0.7,formality=0.3 --json
      parm-mlx generate "How do I bake bread?" --alpha cheer=1 --json --explain
      parm-mlx generate --model base --parm parm --guide-model small < question.txt
      parm-mlx generate --model base-8b --parm parm --draft-model base-1b -p "How do I bake bread?"
    """
    if text is not None and (prompt is not None or prompts is not None):
        raise InputError(f"unexpected argument {text!r}: the prompts are given by --prompt or --prompts")
    if ignore_chat_template and models.system_prompt:
        raise InputError("--system-prompt needs the chat template")
    if ignore_chat_template and models.chat_template:
        raise InputError("--chat-template and --ignore-chat-template exclude each other")
    if ignore_chat_template and (models.enable_thinking or models.steer_thinking):
        raise InputError("--enable-thinking and --steer-thinking need the chat template")
    explain = explain or explain_parts
    if explain and not as_json:
        raise InputError("--explain needs --json", hint="in a chat, /why shows it in colour")
    specs: list[str | None] = [*alpha] if alpha else [None]
    alone = all(spec == BASE_ALONE for spec in specs)
    asked = [text] if text is not None and prompt is None else prompt
    same = {"alpha": specs, "max_tokens": max_tokens, "json": as_json, "explain": [explain, explain_parts]}
    with sharded(models.shard, **same, **asdict(sampling), ignore_chat_template=ignore_chat_template) as shard:
        texts = _prompts(asked, prompts) if shard is None or shard.main else []
        texts = texts if shard is None else shard.decide(texts)
        session = open_session(models, drafts, template=not ignore_chat_template, alone=alone, shard=shard)
        alphas = [read_alpha(spec, session.objectives) for spec in specs]
        jobs = [(number, text, weights) for number, text in enumerate(texts) for weights in alphas]
        with stopping_together(shard):
            if len(jobs) == 1 and not as_json:
                _print_one(session, jobs[0], sampling, max_tokens)
            else:
                _print_all(session, jobs, sampling, max_tokens, as_json, explain, explain_parts)


def _print_one(session: "Session", job: Job, sampling: SamplingSettings, max_tokens: int) -> None:
    """Prints one answer as it comes."""
    answer = stream(session, job, sampling, max_tokens)
    if session.model.shard is not None and session.model.shard.stopped:
        return
    answer.clock.note(answer.prompt, answer.tokens)
    if answer.cut:
        console.note(f"cut at {max_tokens} tokens (--max-tokens)")
    note_drafts(answer.drafts)
    note_across(session)


def _print_all(
    session: "Session",
    jobs: list[Job],
    sampling: SamplingSettings,
    max_tokens: int,
    as_json: bool,
    explained: bool,
    parts: bool,
) -> None:
    """Prints several answers, or one as JSON."""
    from parm_mlx.guidance.speculation import DraftCount

    beta = session.betas[0] if len(session.betas) == 1 else session.betas
    kept, clock, count = DraftCount(), Clock(), 0
    several = len({number for number, _, _ in jobs}) > 1
    for (number, text, weights), answer in answers(session, jobs, sampling, max_tokens):
        count += len(answer.tokens)
        if answer.drafts is not None:
            kept.add(answer.drafts)
        if as_json:
            record: dict[str, Any] = {
                "prompt": text,
                "alpha": None if weights is None else list(weights),
                "objectives": list(session.objectives),
                "beta": beta,
                "seed": sampling.seed,
                "text": answer.text,
                "tokens": len(answer.tokens),
                "finish_reason": answer.finish_reason,
            }
            if answer.reasoning:
                record["reasoning"] = answer.reasoning
            if explained and weights is not None:
                record["explain"] = _explained(session, (number, text, weights), answer, parts)
            if answer.drafts is not None:
                record["drafts"] = {**asdict(answer.drafts), "acceptance_rate": round(answer.drafts.rate, 4)}
            if weights is not None and (across := across_count(session)):
                record |= across
            console.record(record)
        else:
            title = f"{text} " if several else ""
            console.echo(f"[{title}{format_alpha(weights, session.objectives)}]")
            say(answer)
            console.echo()
    if not as_json:
        clock.note_all(len(jobs), count)
        note_across(session)
    note_drafts(kept)


def _explained(session: "Session", job: Job, answer: "Answer", parts: bool) -> list[dict[str, Any]]:
    from parm_mlx.guidance.explain import described, explain

    (request,) = requests(session, [job], SamplingSettings())
    marks, opened = request.prompt.thinking, request.prompt.opened
    thought, said = marks.split(opened, answer.tokens) if marks else ([], answer.tokens)
    return described(session.tokenizer, explain(session.model, request.after(thought), said, parts))


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    if given is not None and file is not None:
        raise InputError("--prompt and --prompts exclude each other")
    if given is None and file is None:
        if sys.stdin.isatty():
            raise InputError("the prompt is missing", hint='for instance: generate "How do I bake bread?"')
        given = ["-"]
    if file is None:
        texts = [decoded(sys.stdin.read(), "stdin").strip() if text == "-" else text for text in given or []]
        if not all(text.strip() for text in texts):
            raise InputError("the prompt is empty")
        return texts
    from parm_mlx.data.prompts import read_prompts

    found = []
    for prompt in read_prompts(file):
        if not isinstance(prompt.content, str):
            raise DataError(f'{file}:{prompt.line}: "prompt" must be a text')
        found.append(prompt.content)
    return found
