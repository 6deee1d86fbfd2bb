"""Rewards: from prompts and answers to numbers, larger is better, whatever computes them.

``NAME=SPEC`` says what a reward is called and what it is; :func:`load_rewards` has the forms of SPEC.
"""

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from parm_mlx.errors import InputError, ParmError, RunError, first_line
from parm_mlx.fingerprint import digest, directory_digest
from parm_mlx.guidance.templates import Content
from parm_mlx.rewards.builtin import SCORERS

Function = Callable[[Sequence[Content], Sequence[str]], Iterable[Any]]

BATCH = 32


class Reward:
    """A named reward. Each pair of prompt and answer is scored once, in batches of similar length.

    Args:
        name: What it is called.
        spec: What it is.
        function: Scores several answers, each to its prompt.
        batch_size: Most answers that the function is given at once; None for no limit.
        source: What it is, as the user gave it; the spec by default.
        digest: Tells its files from others; None where it has none.
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
        self._known: dict[tuple[str, str], float] = {}

    def __call__(
        self,
        prompts: Sequence[Content],
        answers: Sequence[str],
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[float]:
        """Scores answers.

        Args:
            prompts: A text or messages for each answer.
            answers: The answers.
            progress: Told how many pairs have just been scored.

        Returns:
            A score for each, larger is better.

        Raises:
            RunError: The reward failed, or returned something else than a finite number for each.
        """
        keys = [(repr(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        todo = sorted(first, key=lambda key: (-len(key[0]) - len(key[1]), first[key]))
        size = self._batch_size or max(len(todo), 1)
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            places = [first[key] for key in batch]
            scores = self._score([prompts[i] for i in places], [answers[i] for i in places])
            self._known.update(zip(batch, scores, strict=True))
            progress(len(batch))
        return [self._known[key] for key in keys]

    def forget(self) -> None:
        """Drops the scores that are known, which keep the texts of their answers."""
        self._known.clear()

    def _score(self, prompts: list[Content], answers: list[str]) -> list[float]:
        try:
            with redirect_stdout(sys.stderr):
                values = list(self._function(prompts, answers))
        except ParmError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            what = f"{type(error).__name__}: {first_line(error)} (at {where})"
            raise RunError(f"reward {self.name} ({self.spec}) failed: {what}") from error
        if len(values) != len(answers):
            raise RunError(f"reward {self.name} ({self.spec}) returned {len(values)} scores for {len(answers)} answers")
        return [self._number(value, answer) for value, answer in zip(values, answers, strict=True)]

    def _number(self, value: Any, answer: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            short = answer if len(answer) <= 60 else f"{answer[:57]}…"
            raise RunError(f"reward {self.name} ({self.spec}) returned {value!r}, no finite number, for {short!r}")
        return number


def load_rewards(specs: Sequence[str]) -> dict[str, Reward]:
    """Loads rewards.

    Args:
        specs: ``NAME=SPEC`` each. SPEC is ``builtin:NAME`` or the name of a built-in scorer, or ``module:function`` (a
            Python function of a list of prompts and a list of answers), or ``hf:ID`` or ``hf-answer:ID`` (a classifier
            of the conversation, or of the answer alone, through transformers), or the directory or hub id of a reward
            model. ``#LABEL`` after the last two picks one of several outputs.

    Returns:
        The rewards by name, in this order.

    Raises:
        InputError: A form is wrong, a name comes twice, or something does not exist.
        RunError: A download failed.
    """
    models: dict[str, Any] = {}
    rewards: dict[str, Reward] = {}
    for given in specs:
        name, equals, spec = (part.strip() for part in given.partition("="))
        if not (name and equals and spec):
            raise InputError(f"reward {given!r} is not NAME=SPEC", hint="for instance helpful=models/reward")
        if name in rewards:
            raise InputError(f"reward {name} is given twice")
        rewards[name] = _load(name, spec, models)
    return rewards


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
    if Path(source).expanduser().is_dir() or (not colon and "/" in source):
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


def _split_label(spec: str) -> tuple[str, str | None]:
    """``SOURCE#LABEL`` in two parts; a directory may have a # in its name."""
    source, sign, label = spec.rpartition("#")
    return (source, label) if sign and not Path(spec).expanduser().is_dir() else (spec, None)


def _reward_model(source: str, label: str | None, models: dict[str, Any]) -> tuple[Function, str]:
    """A reward model, and the digest of its files."""
    from parm_mlx.rewards.model import RewardModel

    if source not in models:
        models[source] = RewardModel(source)
    function: Function = models[source].output(label)
    return function, directory_digest(models[source].path)


def _classifier(source: str, label: str | None, answer_alone: bool) -> tuple[Function, str | None]:
    """A classifier, and the digest of its directory or the commit of its repository."""
    from parm_mlx.rewards.hf import Classifier

    classifier = Classifier(source, label, answer_alone)
    path = Path(source).expanduser()
    return classifier, directory_digest(path) if path.is_dir() else classifier.commit


def _close(name: str) -> str:
    close = get_close_matches(name, SCORERS, 1)
    return f"; {close[0]}?" if close else ""


def _python(module: str, name: str) -> tuple[Function, str]:
    """A function of a module, which may lie in the current directory, and a digest of the module's file.

    Where the function comes from another file, that one counts, too.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"reward module {module} cannot be imported: {error}") from error
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"module {module} has no function {name}")
    function: Function = found
    origin = sys.modules.get(getattr(inspect.unwrap(found), "__module__", None) or module)
    files = dict.fromkeys(getattr(each, "__file__", None) for each in (sys.modules[module], origin))
    return function, digest(b"".join(Path(file).read_bytes() for file in files if file))
