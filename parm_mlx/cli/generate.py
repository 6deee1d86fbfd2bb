"""``parm-mlx generate``: answers to prompts, at one or several preferences."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import BASE_ALONE, Alphas, DraftOptions, MaxTokens, ModelOptions, flag, grouped
from parm_mlx.cli.reply import Reply, say
from parm_mlx.cli.session import across_count, note_across, note_drafts, open_session, read_alpha
from parm_mlx.errors import DataError, InputError
from parm_mlx.files import decoded
from parm_mlx.preference import Alpha, format_alpha
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.generate import Answer
    from parm_mlx.guidance.sampling import Request
    from parm_mlx.guidance.session import Session
    from parm_mlx.guidance.speculation import DraftCount

Job = tuple[int, str, Alpha | None]  # the prompt's number, the prompt, the preference


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
    texts = _prompts([text] if text is not None and prompt is None else prompt, prompts)
    if text is not None and (prompt is not None or prompts is not None):
        raise InputError(f"unexpected argument {text!r}: the prompts are given by --prompt or --prompts")
    if ignore_chat_template and models.system_prompt:
        raise InputError("--system-prompt needs the chat template")
    if ignore_chat_template and models.chat_template:
        raise InputError("--chat-template and --ignore-chat-template exclude each other")
    if ignore_chat_template and (models.enable_thinking or models.steer_thinking):
        raise InputError("--enable-thinking and --steer-thinking need the chat template")
    if explain and not as_json:
        raise InputError("--explain needs --json", hint="in a chat, /why shows it in colour")
    specs: list[str | None] = [*alpha] if alpha else [None]
    alone = all(spec == BASE_ALONE for spec in specs)
    session = open_session(models, drafts, template=not ignore_chat_template, alone=alone)
    alphas = [read_alpha(spec, session.objectives) for spec in specs]
    jobs = [(number, text, weights) for number, text in enumerate(texts) for weights in alphas]
    if len(jobs) == 1 and not as_json:
        answer = stream(session, jobs[0], sampling, max_tokens)
        answer.clock.note(answer.prompt, answer.tokens)
        if answer.cut:
            console.note(f"cut at {max_tokens} tokens (--max-tokens)")
        note_drafts(answer.drafts)
        note_across(session)
    else:
        _print_all(session, jobs, sampling, max_tokens, as_json, explain)


@dataclass
class Streamed:
    """An answer that was printed as it came: its text, and how many tokens its prompt and it have."""

    clock: "Clock"
    prompt: int
    drafts: "DraftCount"
    text: str = ""
    tokens: int = 0
    cut: bool = False


def stream(
    session: "Session", job: Job, sampling: SamplingSettings, max_tokens: int, indent: str = "", mark_cut: bool = False
) -> Streamed:
    """Prints one answer as it comes; ``mark_cut`` has a mark where it ends at the limit."""
    from parm_mlx.guidance.generate import stream as pieces
    from parm_mlx.guidance.speculation import DraftCount

    (request,) = _requests(session, [job], sampling)
    drafting = session.drafting_alone(console.note)
    answer, reply = Streamed(Clock(), len(request.prompt.base), DraftCount()), Reply(indent)
    produced = pieces(session.model, session.tokenizer, request, max_tokens, drafting, answer.drafts)
    try:
        for piece in produced:
            answer.clock.token()
            answer.tokens += piece.finish_reason != "stop"
            reply.feed(piece)
            if piece.finish_reason == "length":
                answer.cut = True
                if mark_cut:
                    reply.cut()
    finally:
        answer.text = reply.text
        reply.close()
    return answer


def _print_all(
    session: "Session", jobs: list[Job], sampling: SamplingSettings, max_tokens: int, as_json: bool, explained: bool
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
                record["explain"] = _explained(session, (number, text, weights), answer)
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


def _explained(session: "Session", job: Job, answer: "Answer") -> list[dict[str, Any]]:
    from parm_mlx.guidance.explain import described, explain

    (request,) = _requests(session, [job], SamplingSettings())
    marks, opened = request.prompt.thinking, request.prompt.opened
    thought, said = marks.split(opened, answer.tokens) if marks else ([], answer.tokens)
    return described(session.tokenizer, explain(session.model, request.after(thought), said))


def answers(
    session: "Session", jobs: list[Job], sampling: SamplingSettings, max_tokens: int
) -> "Iterator[tuple[Job, Answer]]":
    """Generates an answer for every job, in that order, each as soon as it is known."""
    from parm_mlx.guidance.generate import generate_batch, in_order

    requests = _requests(session, jobs, sampling)
    produced = generate_batch(session.model, session.tokenizer, requests, max_tokens, drafting=session.drafting)
    for answer in in_order(console.waiting(produced, len(requests), "answers")):
        yield jobs[answer.index], answer


def _requests(session: "Session", jobs: list[Job], sampling: SamplingSettings) -> "list[Request]":
    from parm_mlx.guidance.sampling import Request, Sampling

    how = Sampling(**asdict(sampling))
    requests = []
    for number, text, weights in jobs:
        prompt = [*session.system, {"role": "user", "content": text}] if session.system else text
        requests.append(Request(session.prompter(prompt), weights, how, number))
    return requests


class Clock:
    """Measures one call of the models, for the line after its answers."""

    def __init__(self) -> None:
        self._started, self._first = time.perf_counter(), 0.0

    def token(self) -> None:
        """Marks the first token, up to which the prompt was read."""
        self._first = self._first or time.perf_counter()

    def note(self, prompt: int, answer: int) -> None:
        """Notes tokens and speed of one prompt and its answer."""
        reading, writing = self._first - self._started, time.perf_counter() - self._first
        speed = f", {(answer - 1) / writing:.1f} tokens/s" if answer > 1 and writing else ""
        console.note(
            f"prompt: {prompt} tokens, {prompt / reading:.1f} tokens/s; answer: {answer} tokens{speed}; {_peak()}"
        )

    def note_all(self, answers: int, tokens: int) -> None:
        """Notes tokens and speed of several answers."""
        taken = time.perf_counter() - self._started
        console.note(f"{answers} answers, {tokens} tokens, {tokens / taken:.1f} tokens/s; {_peak()}")


def _peak() -> str:
    import mlx.core as mx

    return f"peak memory {mx.get_peak_memory() / 1e9:.2f} GB"


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
