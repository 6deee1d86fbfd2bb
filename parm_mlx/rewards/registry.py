"""Rewards: from prompts and answers to numbers, larger is better, whatever computes them.

``NAME=SPEC`` says what a reward is called and what it is; :func:`load_rewards` lists the forms of SPEC.
"""

import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from parm_mlx.errors import InputError, ParmError, RunError, first_line
from parm_mlx.files import expanded, is_dir
from parm_mlx.fingerprint import digest, directory_digest
from parm_mlx.guidance.templates import Content
from parm_mlx.ranges import meant
from parm_mlx.rewards import builtin, vader

Scorer = Callable[[Sequence[Content], Sequence[str]], Sequence[float]]
Function = Callable[[Sequence[Content], Sequence[str]], Iterable[Any]]  # a user's, whose scores are checked

SCORERS = {**builtin.SCORERS, **vader.SCORERS}
BATCH = 32
_PACKAGE = Path(__file__).parents[1]


class Reward:
    """A named reward: a function that scores at most ``batch_size`` answers at once, each to its prompt.

    ``spec`` says what it is (another spec, other scores), ``source`` how the user gave it, if otherwise, and ``digest``
    is that of its files, if it has any.
    """

    def __init__(
        self,
        name: str,
        spec: str,
        function: Function,
        batch_size: int | None = BATCH,
        source: str | None = None,
        digest: str | None = None,
    ) -> None:
        self.name, self.spec, self.source, self.digest = name, spec, source or spec, digest
        self._function, self._batch_size = function, batch_size

    def __call__(self, prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
        """Scores answers: each different pair of prompt and answer once, in batches of similar length.

        Raises:
            RunError: The reward failed, or did not return a finite number for each.
        """
        keys = [(repr(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        pairs = sorted(first, key=lambda key: (-len(key[0]) - len(key[1]), first[key]))
        size = self._batch_size or max(len(pairs), 1)
        scores: dict[tuple[str, str], float] = {}
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            indices = [first[key] for key in batch]
            values = self._score([prompts[i] for i in indices], [answers[i] for i in indices])
            scores.update(zip(batch, values, strict=True))
        return [scores[key] for key in keys]

    def _score(self, prompts: list[Content], answers: list[str]) -> list[float]:
        what = f"reward {self.name} ({self.spec})"
        with _user_code(f"{what} failed", RunError, passes=ParmError):  # which our own rewards raise
            values = list(self._function(prompts, answers))
        if len(values) != len(answers):
            raise RunError(f"{what} returned {len(values)} scores for {len(answers)} answers")
        return [_finite(value, answer, what) for value, answer in zip(values, answers, strict=True)]


def _finite(value: Any, answer: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        short = answer if len(answer) <= 60 else f"{answer[:57]}…"
        raise RunError(f"{what} returned {value!r}, which is not a finite number, for {short!r}")
    return number


def load_rewards(specs: Sequence[str] | Mapping[str, str | Function]) -> dict[str, Reward]:
    """Loads rewards by name, in this order.

    Args:
        specs: ``NAME=SPEC`` each, or SPEC by name. SPEC is ``builtin:NAME`` or the name of a built-in scorer, or
            ``module:function`` (a Python function of a list of prompts and a list of answers), or ``hf:ID`` or
            ``hf-answer:ID`` (a classifier of the conversation, or of the answer alone, through transformers), or the
            directory or hub id of a reward model. ``#LABEL`` after the last two picks one of several outputs. In a
            mapping, SPEC may be the function itself.

    Raises:
        InputError: A SPEC has none of these forms, a name is given twice, or something does not exist.
        RunError: A download failed.
    """
    models: dict[str, Any] = {}
    rewards: dict[str, Reward] = {}
    for name, spec in specs.items() if isinstance(specs, Mapping) else map(_split, specs):
        if name in rewards:
            raise InputError(f"reward {name} is given twice")
        if isinstance(spec, str):
            rewards[name] = _load(name, spec, models)
        else:
            rewards[name] = Reward(name, getattr(spec, "__qualname__", type(spec).__qualname__), spec, None)
    return rewards


def _split(given: str) -> tuple[str, str]:
    name, equals, spec = (part.strip() for part in given.partition("="))
    if not (name and equals and spec):
        raise InputError(f"reward {given!r} is not NAME=SPEC", hint="for instance helpful=models/reward")
    return name, spec


def _load(name: str, spec: str, models: dict[str, Any]) -> Reward:
    kind, colon, rest = spec.partition(":")
    if (kind == "builtin" and colon) or spec in SCORERS:
        scorer = rest if colon else spec
        if scorer not in SCORERS:
            raise InputError(f"there is no built-in scorer {scorer}{meant(scorer, SCORERS)}: {', '.join(SCORERS)}")
        if scorer in vader.SCORERS:
            vader.check_installed()
        return Reward(name, f"builtin:{scorer}", lambda prompts, answers: map(SCORERS[scorer], answers))
    if colon and kind in ("hf", "hf-answer"):
        from parm_mlx.rewards.hf import Classifier

        source, label = _split_label(rest)
        classifier, path = Classifier(source, label, kind == "hf-answer"), expanded(source)
        return Reward(name, spec, classifier, digest=directory_digest(path) if is_dir(path) else classifier.commit)
    source, label = _split_label(spec)
    if is_dir(expanded(source)) or (not colon and "/" in source):
        from parm_mlx.rewards.model import RewardModel

        if source not in models:
            models[source] = RewardModel(source)
        return Reward(name, spec, models[source].output(label), digest=directory_digest(models[source].path))
    if colon:
        function, version = _python(kind, rest)
        return Reward(name, f"{spec}@{version[:8]}", function, None, spec, version)
    raise InputError(
        f"reward {name}: {spec} is neither a built-in scorer ({', '.join(SCORERS)}), the directory of a reward model "
        f"nor module:function{meant(spec, SCORERS)}"
    )


def _split_label(spec: str) -> tuple[str, str | None]:
    """Splits ``SOURCE#LABEL``; the name of a directory may hold a #."""
    source, sign, label = spec.rpartition("#")
    return (source, label) if sign and not is_dir(expanded(spec)) else (spec, None)


def _python(module: str, name: str) -> tuple[Function, str]:
    """Returns a function of a module, which may lie in the current directory, and a digest of the files of both."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"{module!r} is not the name of a Python module", hint="a reward is NAME=module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with _user_code(f"reward module {module} cannot be imported", InputError):
            found: Any = importlib.import_module(module)
    finally:
        if here in sys.path:
            sys.path.remove(here)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"module {module} has no function {name}")
    origin = sys.modules.get(getattr(inspect.unwrap(found), "__module__", None) or module)
    files = dict.fromkeys(getattr(each, "__file__", None) for each in (sys.modules[module], origin))
    return found, digest(b"".join(Path(file).read_bytes() for file in files if file))


@contextmanager
def _user_code(what: str, failure: type[ParmError], passes: Any = ()) -> Iterator[None]:
    """Sends what code of the user prints to stderr, and makes one line of what it raises, except for what passes."""
    try:
        with _stdout_to_stderr():
            yield
    except passes:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        # The handler of a signal raises SystemExit in the middle of user code.
        if isinstance(error, SystemExit) and _PACKAGE in Path(frame.filename).parents:
            raise
        name, message = type(error).__name__, first_line(error)
        shown = name if message == name else f"{name}: {message}"
        # A SyntaxError names its own line; its traceback ends in importlib.
        at = "" if frame.filename.startswith("<") else f" (at {Path(frame.filename).name}:{frame.lineno})"
        raise failure(f"{what}: {shown}{at}") from error


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends to stderr what is printed, also by subprocesses and libraries that write to file descriptor 1."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
