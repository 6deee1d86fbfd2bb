"""``parm-mlx generate``: answers to prompts, at one or several preferences."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from parm_mlx.cli import console
from parm_mlx.cli.options import Alphas, DraftOptions, MaxTokens, ModelOptions, flag, grouped
from parm_mlx.cli.session import note_drafts, open_session, read_alpha
from parm_mlx.errors import DataError, InputError
from parm_mlx.files import decoded
from parm_mlx.preference import Alpha, format_alpha
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.generate import Answer
    from parm_mlx.guidance.session import Session

Job = tuple[int, str, Alpha]  # the prompt's number, the prompt, the preference


@grouped
def generate(
    prompt: Annotated[
        list[str] | None, flag('The prompt; "-" reads it from stdin. May be repeated.', metavar="<str>")
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
) -> None:
    """Answer prompts, at one or several preferences.

    All answers are generated in one batch, however many prompts and preferences there are; one after the other where
    tokens are drafted (--draft-model, --self-speculation).

    \b
    Examples:
      parm-mlx generate --prompt "How do I bake bread?" --alpha 1,0 --alpha 0,1
      parm-mlx generate --prompts questions.txt --alpha warmth=0.7,focus=0.3 --json
      parm-mlx generate --model base --parm parm --guide-model small --prompt - < question.txt
      parm-mlx generate --model base-8b --parm parm --draft-model base-1b --prompt "How do I bake bread?"
    """
    texts = _prompts(prompt, prompts)
    if ignore_chat_template and models.system_prompt:
        raise InputError("--system-prompt needs the chat template")
    if ignore_chat_template and models.chat_template:
        raise InputError("--chat-template and --ignore-chat-template exclude each other")
    session = open_session(models, drafts, template=not ignore_chat_template)
    specs: list[str | None] = [*alpha] if alpha else [None]
    alphas = [read_alpha(spec, session.objectives) for spec in specs]
    beta = session.betas[0] if len(session.betas) == 1 else session.betas

    from parm_mlx.guidance.speculation import DraftCount

    kept = DraftCount()
    jobs = [(number, text, weights) for number, text in enumerate(texts) for weights in alphas]
    for (_, text, weights), answer in answers(session, jobs, sampling, max_tokens):
        if answer.drafts is not None:
            kept.add(answer.drafts)
        if as_json:
            record: dict[str, Any] = {
                "prompt": text,
                "alpha": list(weights),
                "objectives": list(session.objectives),
                "beta": beta,
                "seed": sampling.seed,
                "text": answer.text,
                "tokens": len(answer.tokens),
                "finish_reason": answer.finish_reason,
            }
            if answer.drafts is not None:
                record["drafts"] = {**asdict(answer.drafts), "acceptance_rate": round(answer.drafts.rate, 4)}
            console.record(record)
        else:
            if len(jobs) > 1:
                title = f"{text} " if len(texts) > 1 else ""
                console.echo(f"[{title}{format_alpha(weights, session.objectives)}]")
            console.echo(answer.text.strip() + ("\n" if len(jobs) > 1 else ""))
    note_drafts(kept)


def answers(
    session: "Session", jobs: list[Job], sampling: SamplingSettings, max_tokens: int
) -> "Iterator[tuple[Job, Answer]]":
    """Generates an answer for every job, in that order, each as soon as it is known."""
    from parm_mlx.guidance.generate import generate_batch, in_order
    from parm_mlx.guidance.sampling import Request, Sampling

    how = Sampling(**asdict(sampling))
    requests = []
    for number, text, weights in jobs:
        prompt = [*session.system, {"role": "user", "content": text}] if session.system else text
        requests.append(Request(session.prompter(prompt), weights, how, number))
    produced = generate_batch(session.model, session.tokenizer, requests, max_tokens, drafting=session.drafting)
    for answer in in_order(console.progress(produced, len(requests), "answers")):
        yield jobs[answer.index], answer


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    if (given is None) == (file is None):
        raise InputError("give either --prompt or --prompts", hint='for instance --prompt "How do I bake bread?"')
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
