"""Rewards: from prompts and answers to numbers, larger is better, whatever computes them.

``NAME=SPEC`` says what a reward is called and what it is; :func:`load_rewards` lists the forms of SPEC.
"""

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from parm_mlx.errors import InputError, ParmError, RunError, first_line
from parm_mlx.files import expanded, is_dir
from parm_mlx.fingerprint import digest, directory_digest
from parm_mlx.guidance.templates import Content
from parm_mlx.rewards.builtin import SCORERS

Function = Callable[[Sequence[Content], Sequence[str]], Iterable[Any]]

BATCH = 32
_PACKAGE = Path(__file__).parents[1]


class Reward:
    """A named reward.

    Args:
        name: Its name.
        spec: What it is; another spec, other scores.
        function: Scores several answers, each to its prompt.
        batch_size: Most answers that the function is given at once; None for no limit.
        source: The spec as the user gave it; ``spec`` by default.
        digest: A digest of its files; None where it has none.
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

        Args:
            prompts: A text or messages for each answer.
            answers: The answers.

        Returns:
            A score for each, larger is better.

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
        try:
            with redirect_stdout(sys.stderr):
                values = list(self._function(prompts, answers))
        except ParmError:
            raise
        except (Exception, SystemExit) as error:
            _raise_if_stopped(error)
            raise RunError(f"{what} failed: {_reason(error)}") from error
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
    """Loads rewards.

    Args:
        specs: ``NAME=SPEC`` each, or SPEC by name. SPEC is ``builtin:NAME`` or the name of a built-in scorer, or
            ``module:function`` (a Python function of a list of prompts and a list of answers), or ``hf:ID`` or
            ``hf-answer:ID`` (a classifier of the conversation, or of the answer alone, through transformers), or the
            directory or hub id of a reward model. ``#LABEL`` after the last two picks one of several outputs. In a
            mapping, SPEC may be the function itself.

    Returns:
        The rewards by name, in this order.

    Raises:
        InputError: A SPEC has none of these forms, a name is given twice, or something does not exist.
        RunError: A download failed.
    """
    models: dict[str, Any] = {}
    rewards: dict[str, Reward] = {}
    for given in specs.items() if isinstance(specs, Mapping) else map(_split, specs):
        name, spec = given
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
    if kind == "builtin" and colon:
        return Reward(name, spec, _builtin(rest))
    if not colon and spec in SCORERS:
        return Reward(name, f"builtin:{spec}", _builtin(spec))
    if colon and kind in ("hf", "hf-answer"):
        function, version = _classifier(*_split_label(rest), kind == "hf-answer")
        return Reward(name, spec, function, digest=version)
    source, label = _split_label(spec)
    if is_dir(expanded(source)) or (not colon and "/" in source):
        function, version = _reward_model(source, label, models)
        return Reward(name, spec, function, digest=version)
    if colon:
        function, version = _python(kind, rest)
        return Reward(name, f"{spec}@{version[:8]}", function, None, spec, version)
    raise InputError(
        f"reward {name}: {spec} is neither a built-in scorer ({', '.join(SCORERS)}), the directory of a reward model "
        f"nor module:function{_close(spec)}"
    )


def _builtin(name: str) -> Function:
    if name not in SCORERS:
        raise InputError(f"there is no built-in scorer {name}: {', '.join(SCORERS)}{_close(name)}")
    scorer = SCORERS[name]
    return lambda prompts, answers: map(scorer, answers)


def _close(name: str) -> str:
    close = get_close_matches(name, SCORERS, 1)
    return f"; {close[0]}?" if close else ""


def _split_label(spec: str) -> tuple[str, str | None]:
    """Splits ``SOURCE#LABEL``; the name of a directory may hold a #."""
    source, sign, label = spec.rpartition("#")
    return (source, label) if sign and not is_dir(expanded(spec)) else (spec, None)


def _reward_model(source: str, label: str | None, models: dict[str, Any]) -> tuple[Function, str]:
    """Returns a reward model and the digest of its files."""
    from parm_mlx.rewards.model import RewardModel

    if source not in models:
        models[source] = RewardModel(source)
    return models[source].output(label), directory_digest(models[source].path)


def _classifier(source: str, label: str | None, answer_alone: bool) -> tuple[Function, str | None]:
    """Returns a classifier, and the digest of its directory or the commit of its repository."""
    from parm_mlx.rewards.hf import Classifier

    classifier = Classifier(source, label, answer_alone)
    path = expanded(source)
    return classifier, directory_digest(path) if is_dir(path) else classifier.commit


def _python(module: str, name: str) -> tuple[Function, str]:
    """Returns a function of a module, and a digest of the files of the module and of the function.

    The module may lie in the current directory. What it prints goes to stderr.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"{module!r} is not the name of a Python module", hint="a reward is NAME=module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        _raise_if_stopped(error)
        raise InputError(f"reward module {module} cannot be imported: {_reason(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"module {module} has no function {name}")
    function: Function = found
    origin = sys.modules.get(getattr(inspect.unwrap(found), "__module__", None) or module)
    files = dict.fromkeys(getattr(each, "__file__", None) for each in (sys.modules[module], origin))
    return function, digest(b"".join(Path(file).read_bytes() for file in files if file))


def _raise_if_stopped(error: BaseException) -> None:
    """Raises a SystemExit of this package again: the handler of a signal has raised it in the middle of user code."""
    if isinstance(error, SystemExit) and _PACKAGE in Path(_frame(error).filename).parents:
        raise error


def _frame(error: BaseException) -> traceback.FrameSummary:
    """Returns the innermost frame of a traceback."""
    return traceback.extract_tb(error.__traceback__)[-1]


def _reason(error: BaseException) -> str:
    """Describes an exception in one line. A SyntaxError names its own line; its traceback ends in importlib."""
    name, message, frame = type(error).__name__, first_line(error), _frame(error)
    shown = name if message == name else f"{name}: {message}"
    return shown if frame.filename.startswith("<") else f"{shown} (at {Path(frame.filename).name}:{frame.lineno})"
