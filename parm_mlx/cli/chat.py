"""``parm-mlx chat``: a conversation whose preference can change at any turn."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from parm_mlx.cli import console
from parm_mlx.cli.lines import Lines, unechoed
from parm_mlx.cli.options import BASE_ALONE, Alpha, DraftOptions, MaxTokens, ModelOptions, flag, grouped
from parm_mlx.cli.reply import Reply, say
from parm_mlx.cli.session import note_drafts, open_session, read_alpha, sharded
from parm_mlx.errors import InputError, LostError, ParmError, PreferenceError
from parm_mlx.files import decoded
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.preference import check_beta, format_alpha, parse_alpha
from parm_mlx.ranges import TEMP
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.guidance.chat import Conversation
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.guidance.session import Session

COMMANDS = """\
/alpha cheer=0.8,…      answer by this preference from now on, or by numbers: 0.8,0.2;
                        earlier answers go on to have an effect: /reset forgets them
/alpha base             the base alone, without guidance
/alpha                  show the preference
/compare 1,0 0,1        answer the last question at several preferences, beside the
                        conversation; by default the base alone and each objective
/why                    what base and guide gave the tokens of the last answer;
                        /why parts computes it where one pass stands for both
/beta 0.5               strength of the guide: smaller is stronger
/temp 0.7               sampling temperature; 0 takes the likeliest token
/system TEXT            system message; none removes it
/save FILE, /load FILE  keep the conversation in a file, and go on with it
/reset                  forget the conversation
/help                   this list
/quit, /bye, exit, quit  leave (also Ctrl-D); Ctrl-C stops an answer

Pasted lines are one message; \""" begins and ends a message of several lines."""
PARTS = "parts"
LEAVE = ("/quit", "/exit", "/bye", "quit", "exit")


@grouped
def chat(
    alpha: Alpha = None,
    models: ModelOptions = ModelOptions(),
    sampling: SamplingSettings = SamplingSettings(temp=0.7),
    max_tokens: MaxTokens = 256,
    drafts: DraftOptions = DraftOptions(),
    quiet: Annotated[bool, flag("Print answers only.")] = False,
) -> None:
    """Chat, and change the preference at any turn with /alpha.

    A switch recomputes the guide's cache only; nothing is loaded again. Lines from a pipe are answered one by one.

    \b
    Examples:
      parm-mlx chat --alpha 0.5,0.5
      parm-mlx chat --model base --parm parm --alpha helpful=0.8,harmless=0.2
      parm-mlx chat --model base --alpha base
      echo "hello" | parm-mlx chat --alpha 0.5,0.5 --quiet
    """
    with sharded(models.shard, alpha=alpha, max_tokens=max_tokens, **asdict(sampling)) as shard:
        session = open_session(models, drafts, alone=alpha == BASE_ALONE, shard=shard)
        weights = read_alpha(alpha, session.objectives)

        from parm_mlx.guidance.chat import Conversation
        from parm_mlx.guidance.sampling import Sampling

        note = (lambda _: None) if quiet else console.note
        drafting = session.drafting if weights is None else session.drafting_alone(note)
        conversation = Conversation(
            session.model, session.tokenizer, session.prompter, weights, models.system_prompt, drafting
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
        self._commands: dict[str, Callable[[str], None]] = {
            "/alpha": self._set_alpha,
            "/beta": self._set_beta,
            "/compare": self._compare,
            "/help": lambda _: self._note(COMMANDS),
            "/load": self._load,
            "/reset": self._reset,
            "/save": self._save,
            "/system": self._set_system,
            "/temp": self._set_temp,
            "/why": self._explain,
        }
        weights = [BASE_ALONE, *(f"{name}=" for name in session.objectives)]
        words: dict[str, Any] = dict.fromkeys((*self._commands, "/quit", "/bye"), list)
        words |= {"/alpha": lambda: weights, "/compare": lambda: weights, "/save": None, "/load": None}
        self._shard = session.model.shard
        self._lines = Lines("" if quiet else ">> ", words) if self._shows else None
        self._forgotten, self._told = 0, False

    def run(self) -> None:
        """Reads messages until /quit or the end of the input."""
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                self._note("/quit or Ctrl-D leaves")
                continue
            if line is None or line in LEAVE:
                return
            if not line:
                continue
            try:
                line = decoded(line, "the line")
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._answer(line)
            except LostError:
                raise
            except ParmError as error:
                if self._shows:
                    console.print_error(str(error), error.hint)

    @property
    def _shows(self) -> bool:
        """True in the process that reads and prints: rank 0, where several hold the models."""
        return self._shard is None or self._shard.main

    def _read(self) -> str | None:
        """Reads the next line; where several processes hold the models, the others follow the one that reads."""
        link = None if self._shard is None else self._shard.link
        if self._lines is None:
            assert link is not None
            followed: str | None = json.loads(link.receive())
            return followed
        line = self._lines.read()
        if link:
            link.send(json.dumps(line).encode())
        return line

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            raise PreferenceError(f"unknown command {name}", hint="/help lists the commands")
        self._commands[name](rest.strip())

    def _set_alpha(self, spec: str) -> None:
        before = self._conversation.alpha
        if spec:
            self._conversation.alpha = read_alpha(spec, self._session.objectives)
        if self._conversation.alpha != before and self._conversation.last_question and not self._told:
            self._note("earlier answers go on to have an effect; /reset forgets them")
            self._told = True
        self._note(f"preference: {format_alpha(self._conversation.alpha, self._session.objectives)}")

    @property
    def _steers_by_one(self) -> bool:
        """True if there is a guide, and one β for all of it."""
        return bool(self._session.objectives) and len(self._session.betas) == 1

    def _set_beta(self, spec: str) -> None:
        model = self._session.model
        if not self._steers_by_one:
            raise PreferenceError("there is no β to set: the guides have one each, or there is none")
        if spec:
            model.beta = check_beta(spec)
        aside = "" if self._conversation.alpha else " (the base answers alone; /alpha sets a preference)"
        self._note(f"beta: {model.beta:g}{aside}")

    def _set_temp(self, spec: str) -> None:
        if spec:
            try:
                self._sampling = replace(self._sampling, temp=TEMP.read(spec))
            except ValueError as reason:
                raise PreferenceError(f"the temperature {reason}") from None
        self._note(f"temperature: {self._sampling.temp:g}")

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system_prompt = None if text == "none" else text
        self._note(f"system message: {self._conversation.system_prompt or 'none'}")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._forgotten = 0
        self._note("the conversation starts again")

    def _save(self, name: str) -> None:
        from parm_mlx.guidance.saved import save_conversation

        beta = self._session.model.beta if self._steers_by_one else None
        settings = {"beta": beta, "temp": self._sampling.temp}
        name = _named(name, "/save")
        if self._shows:
            file = save_conversation(name, self._conversation, self._session.names, settings)
            self._note(f"saved in {file}")

    def _load(self, name: str) -> None:
        from parm_mlx.guidance.saved import load_conversation

        settings = load_conversation(_named(name, "/load"), self._conversation, self._session.names, self._shard)
        self._forgotten = 0
        if settings is None:
            self._note("the conversation goes on, with other models than before")
        else:
            self._note("the conversation goes on")
            if settings["beta"] is not None and self._steers_by_one:
                self._set_beta(str(settings["beta"]))
            self._set_temp(str(settings["temp"]))
        self._set_alpha("")

    def _answer(self, question: str) -> None:
        reason, out = None, Reply()
        with unechoed(self._shows), stop_on_interrupt() as stop:
            stopped: Callable[[], bool] = stop if self._shard is None else self._shard.watch(stop)
            answer = self._conversation.ask(question, self._sampling, self._max_tokens)
            try:
                for chunk in answer:
                    self._note_forgotten()
                    out.feed(chunk)
                    reason = None if stopped() else chunk.finish_reason
                    if stopped():
                        break
            finally:
                answer.close()
                out.close()
        if reason != "stop":
            self._note("stopped" if reason is None else f"cut at {self._max_tokens} tokens (--max-tokens)")

    def _note_forgotten(self) -> None:
        new, self._forgotten = self._conversation.forgotten - self._forgotten, self._conversation.forgotten
        if new:
            limit = self._session.model.context_length
            turns = "the oldest turn is" if new == 1 else f"the oldest {new} turns are"
            self._note(f"the models read {limit} tokens: {turns} forgotten")

    def _explain(self, what: str) -> None:
        from parm_mlx.cli.why import show_reasons

        if what not in ("", PARTS):
            raise PreferenceError(f"/why {what}: there is only /why {PARTS}")
        show_reasons(self._conversation.explain(parts=bool(what)), self._session.tokenizer)
        if self._session.model.reads_once and not what:
            self._note(f"one pass stands for base and guide; /why {PARTS} computes what each of them gives")

    def _compare(self, given: str) -> None:
        from parm_mlx.guidance.generate import generate_batch, in_order
        from parm_mlx.guidance.sampling import Request

        question, session = self._conversation.last_question, self._session
        if question is None:
            raise PreferenceError("nothing to compare yet: ask something first")
        specs = re.sub(r"\s*([,=])\s*", r"\1", given).split()
        alphas = [read_alpha(spec, session.objectives) for spec in specs] or [
            None,
            *(parse_alpha({name: 1}, session.objectives) for name in session.objectives),
        ]
        requests = [Request(question, alpha, self._sampling) for alpha in alphas]
        with unechoed(self._shows), stop_on_interrupt() as stop:
            stopped: Callable[[], bool] = stop if self._shard is None else self._shard.watch(stop)
            answers = generate_batch(session.model, session.tokenizer, requests, self._max_tokens, stopped=stopped)
            for answer in in_order(console.waiting(answers, len(requests), "answers")):
                console.echo(f"[{format_alpha(alphas[answer.index], session.objectives)}]")
                say(answer)
                console.echo()
        if stopped():
            self._note("stopped")


def _named(name: str, command: str) -> str:
    if not name:
        raise InputError(f"{command} needs the name of a file")
    return name
