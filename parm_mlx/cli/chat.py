"""``parm-mlx chat``: a conversation whose preference can change at any turn."""

import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from parm_mlx.cli import console
from parm_mlx.cli.options import Alpha, DraftOptions, MaxTokens, ModelOptions, flag, grouped
from parm_mlx.cli.session import note_drafts, open_session, read_alpha
from parm_mlx.errors import ParmError, PreferenceError
from parm_mlx.files import decoded
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.preference import format_alpha
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.chat import Conversation
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.guidance.session import Session

COMMANDS = """\
/alpha 0.8,0.2          answer by this preference from now on (also by name: /alpha warmth=0.8,focus=0.2)
/alpha                  show the preference
/compare 1,0 0,1        answer the last question at several preferences, beside the conversation
/reset                  forget the conversation
/help                   this list
/quit                   leave (also Ctrl-D); Ctrl-C stops an answer"""


@grouped
def chat(
    alpha: Alpha = None,
    models: ModelOptions = ModelOptions(),
    sampling: SamplingSettings = SamplingSettings(temp=0.7),
    max_tokens: MaxTokens = 512,
    drafts: DraftOptions = DraftOptions(),
    quiet: Annotated[bool, flag("Print answers only.")] = False,
) -> None:
    """Chat, and change the preference at any turn with /alpha.

    A switch recomputes the guide's cache only; nothing is loaded again. Lines from a pipe are answered one by one.

    \b
    Examples:
      parm-mlx chat --alpha 0.5,0.5
      parm-mlx chat --model base --parm parm --alpha helpful=0.8,harmless=0.2
      echo "hello" | parm-mlx chat --alpha 0.5,0.5 --quiet
    """
    session = open_session(models, drafts)
    weights = read_alpha(alpha, session.objectives)

    from parm_mlx.guidance.chat import Conversation
    from parm_mlx.guidance.sampling import Sampling

    conversation = Conversation(
        session.model, session.tokenizer, session.prompter, weights, models.system_prompt, session.drafting
    )
    if not quiet:
        console.note(f"preference: {format_alpha(weights, session.objectives)}   /help lists the commands")
    Chat(session, conversation, Sampling(**asdict(sampling)), max_tokens, quiet).run()
    if not quiet:
        note_drafts(conversation.drafts)


class Chat:
    """The loop of one conversation at a terminal or a pipe."""

    def __init__(
        self, session: "Session", conversation: "Conversation", sampling: "Sampling", max_tokens: int, quiet: bool
    ) -> None:
        self._session, self._conversation = session, conversation
        self._sampling, self._max_tokens = sampling, max_tokens
        self._note = (lambda _: None) if quiet else console.note
        self._prompt = "" if quiet or not sys.stdin.isatty() else ">> "

    def run(self) -> None:
        """Reads lines until /quit or the end of the input."""
        while (line := self._read()) is not None:
            if not line:
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                line = decoded(line, "the line")
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._answer(line)
            except ParmError as error:
                console.print_error(str(error), error.hint)

    def _read(self) -> str | None:
        try:
            if sys.stdin.isatty():
                import readline  # noqa: F401  (gives input() line editing and history)

                return input(self._prompt).strip()
            line = sys.stdin.readline()
            return line.strip() if line else None
        except EOFError:
            return None
        except KeyboardInterrupt:
            self._note("\n/quit or Ctrl-D leaves")
            return ""

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/alpha":
            if rest:
                self._conversation.alpha = read_alpha(rest, self._session.objectives)
            self._note(f"preference: {format_alpha(self._conversation.alpha, self._session.objectives)}")
        elif name == "/compare":
            self._compare(re.sub(r"\s*([,=])\s*", r"\1", rest).split())
        elif name == "/reset":
            self._conversation.reset()
            self._note("the conversation starts again")
        elif name == "/help":
            self._note(COMMANDS)
        else:
            raise PreferenceError(f"unknown command {name}", hint="/help lists the commands")

    def _answer(self, question: str) -> None:
        reason, begun = None, False
        with stop_on_interrupt() as stopped:
            answer = self._conversation.ask(question, self._sampling, self._max_tokens)
            try:
                for chunk in answer:
                    console.echo(chunk.text, end="")
                    sys.stdout.flush()
                    begun = True
                    reason = chunk.finish_reason
                    if stopped():
                        break
            finally:
                answer.close()
                if begun:
                    console.echo()
        if reason != "stop":
            self._note("stopped" if reason is None else f"cut at {self._max_tokens} tokens (--max-tokens)")

    def _compare(self, specs: list[str]) -> None:
        from parm_mlx.guidance.generate import generate_batch, in_order
        from parm_mlx.guidance.sampling import Request

        question = self._conversation.last_question
        if question is None:
            raise PreferenceError("nothing to compare yet: ask something first")
        if not specs:
            raise PreferenceError("/compare needs preferences", hint="for instance /compare 1,0 0.5,0.5 0,1")
        session = self._session
        alphas = [read_alpha(spec, session.objectives) for spec in specs]
        requests = [Request(question, alpha, self._sampling) for alpha in alphas]
        with stop_on_interrupt() as stopped:
            answers = generate_batch(session.model, session.tokenizer, requests, self._max_tokens, stopped=stopped)
            for answer in in_order(answers):
                console.echo(f"[{format_alpha(alphas[answer.index], session.objectives)}]\n{answer.text.strip()}\n")
        if stopped():
            self._note("stopped")
