"""Answers of commands: one that is printed as it comes, or several of one batch, and how long they took."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from parm_mlx.cli import console
from parm_mlx.cli.reply import Reply
from parm_mlx.preference import Alpha
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.generate import Answer
    from parm_mlx.guidance.sampling import Request
    from parm_mlx.guidance.session import Session
    from parm_mlx.guidance.speculation import DraftCount

Job = tuple[int, str, Alpha | None]  # the prompt's number, the prompt, the preference


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

    (request,) = requests(session, [job], sampling)
    drafting = session.drafting if request.alpha is None else session.drafting_alone(console.note)
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


def answers(
    session: "Session", jobs: list[Job], sampling: SamplingSettings, max_tokens: int
) -> "Iterator[tuple[Job, Answer]]":
    """Generates an answer for every job, in that order, each as soon as it is known."""
    from parm_mlx.guidance.generate import generate_batch, in_order

    asked = requests(session, jobs, sampling)
    produced = generate_batch(session.model, session.tokenizer, asked, max_tokens, drafting=session.drafting)
    for answer in in_order(console.waiting(produced, len(asked), "answers")):
        yield jobs[answer.index], answer


def requests(session: "Session", jobs: list[Job], sampling: SamplingSettings) -> "list[Request]":
    """The requests of jobs, whose numbers tell answers with the same seed apart."""
    from parm_mlx.guidance.sampling import Request, Sampling

    how = Sampling(**asdict(sampling))
    found = []
    for number, text, weights in jobs:
        prompt = [*session.system, {"role": "user", "content": text}] if session.system else text
        found.append(Request(session.prompter(prompt), weights, how, number))
    return found


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
