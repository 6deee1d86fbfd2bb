"""The folder of a run: what run it is, its answers (``results.jsonl``) and their scores (``scores.jsonl``).

Answers are appended as they end. A line that a kill or a full disk has cut off does not count, and goes when the run
that it is of is gone on with. Reading a run changes nothing.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from parm_mlx.errors import InputError, OutputError
from parm_mlx.files import disk_errors, read_json
from parm_mlx.guidance.templates import Content
from parm_mlx.outputs import check_claim, claimed, mark, own, read_marker, write_file
from parm_mlx.preference import Alpha

RUN_FILE, RESULTS_FILE, SCORES_FILE = "run.json", "results.jsonl", "scores.jsonl"
FORMAT = 1
_PART = re.compile(r"results\.rank\d+\.jsonl")
FILES = ("models", "reward_files")
INPUTS = (*FILES, "adapter_sha256")
RESUMED = "resumed_with_changes"
Key = tuple[str, Alpha | None, int]
Scores = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        id: Id of its prompt.
        prompt: The prompt.
        alpha: The preference; None is the base alone.
        seed: Seed of the sampling.
        text: The answer.
        tokens: Its length in tokens.
        finish_reason: ``"stop"`` or ``"length"``.
    """

    id: str
    prompt: Content
    alpha: Alpha | None
    seed: int
    text: str
    tokens: int
    finish_reason: str

    @property
    def key(self) -> Key:
        """What the answer is told by."""
        return self.id, self.alpha, self.seed


def as_line(row: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


class RunFolder:
    """A run's files.

    Args:
        path: The folder; made when there is none.
        identity: Objectives and settings that tell the run from others, as JSON has them; ``models``, the fingerprints
            of its models by role; and ``reward_files``, those of its rewards by what they are.
        anyway: Go on also where models or rewards are not those that the run began with; ``run.json`` says so.

    Attributes:
        changed: What of the models and rewards is not as it was.

    Raises:
        OutputError: The folder holds another run, or something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], anyway: bool = False) -> None:
        self.path = path.expanduser()
        self.identity = {"format": FORMAT, **json.loads(json.dumps(identity))}
        self.rewards: dict[str, str] = {}
        self._anyway = anyway
        check_claim(self.path, "run")
        self._check()

    def _check(self) -> None:
        """Compares the run with what the folder holds."""
        self.changed: list[str] = []
        self._resumed: list[Any] = []
        self._outdated: set[str] = set()
        if not (self.path / RUN_FILE).exists():
            return
        found = read_json(self.path / RUN_FILE, f"run {self.path}", OutputError)
        self.rewards = dict(found.pop("rewards", {}))  # type: ignore[call-overload]
        self._resumed = list(found.pop(RESUMED, []))  # type: ignore[call-overload]
        differing = differences(self._comparable(found), self.identity)
        if not differing:
            return
        self.changed = [name for name, _ in differing if name.partition(".")[0] in INPUTS]
        inputs_alone = len(self.changed) == len(differing)
        if not (inputs_alone and self._anyway):
            shown = "; ".join(f"{name}: {theirs}, now {ours}" for name, (theirs, ours) in differing[:3])
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            hint = "go on with --resume-anyway" if inputs_alone else "remove it"
            raise OutputError(f"{self.path} holds another run ({shown}{more})", hint=f"choose another --out, or {hint}")
        self._outdated = {name.removeprefix("reward_files.") for name in self.changed}
        answers = (self.path / RESULTS_FILE).read_bytes().count(b"\n") if (self.path / RESULTS_FILE).exists() else 0
        self._resumed.append({"answers": answers, "changed": dict(differing)})

    def _comparable(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What a run was, without the rewards that it does not share with this one."""
        before = found.get("reward_files", {})
        rewards = {spec: before.get(spec, now) for spec, now in self.identity.get("reward_files", {}).items()}
        return {**found, "reward_files": rewards}

    def write_identity(self) -> None:
        """Says in the folder what run it is."""
        content = {**self.identity, "rewards": self.rewards}
        content |= {RESUMED: self._resumed} if self._resumed else {}
        write_file(self.path / RUN_FILE, [json.dumps(content, indent=2, ensure_ascii=False) + "\n"])

    def set_rewards(self, specs: Mapping[str, str]) -> None:
        """Says what scores the answers; scores by what has changed are dropped."""
        changed = {n for n, spec in self.rewards.items() if specs.get(n) != spec or spec in self._outdated}
        kept = {key: {n: v for n, v in row.items() if n not in changed} for key, row in self.scores().items()}
        self.rewards = dict(specs)
        self.write_scores(kept)
        self.write_identity()

    def results(self) -> dict[Key, Result]:
        """The answers that are there, those of other processes too."""
        found: dict[Key, Result] = {}
        for file in [self.path / RESULTS_FILE, *self.parts()]:
            found |= {result.key: result for result in read_rows(file, _as_result)}
        return found

    def parts(self) -> list[Path]:
        """Files with the answers of the other processes, while they work or when they were ended."""
        names = (read_marker(self.path) or {"files": ()})["files"]
        return sorted(self.path / name for name in names if _PART.fullmatch(name) and (self.path / name).exists())

    def scores(self) -> dict[Key, Scores]:
        """The scores that are there."""
        return dict(read_rows(self.path / SCORES_FILE, _as_scores))

    def write_results(self, results: Iterable[Result]) -> None:
        """Writes all answers in this order, in place of what is there."""
        write_file(self.path / RESULTS_FILE, (result_line(result) for result in results))

    def write_scores(self, scores: Mapping[Key, Scores]) -> None:
        """Writes all scores in this order, in place of what is there."""
        write_file(self.path / SCORES_FILE, (score_line(key, values) for key, values in scores.items()))

    @contextmanager
    def locked(self, processes: int = 1) -> Iterator[None]:
        """Holds the folder for this process, makes it if there is none, and says in it what run it is.

        Args:
            processes: How many processes share the work.

        Raises:
            OutputError: Another process works in the folder, or it has become another run's, or it cannot be made.
        """
        with claimed(self.path, "run", f"{self.path} is in use: another process works on the same run"):
            self._check()
            own(self.path, [RESULTS_FILE, SCORES_FILE, *map(part_file, range(1, processes))])
            self.write_identity()
            yield

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yields a function that appends a line to a file of the folder; each is handed to the system at once."""
        path = self.path / name
        mark(self.path, "run")  # on a machine that does not see the main process's folder
        own(self.path, [name])
        with disk_errors(path), path.open("a+b") as file:
            _drop_cut_line(file)

            def append(line: str) -> None:
                with disk_errors(path):
                    file.write(line.encode())
                    file.flush()

            yield append


def part_file(rank: int) -> str:
    """The name of the file with the answers of a process other than the main one, while it works."""
    return f"results.rank{rank}.jsonl"


def score_line(key: Key, scores: Mapping[str, float]) -> str:
    """A line of ``scores.jsonl``."""
    return as_line({"id": key[0], "alpha": key[1], "seed": key[2], "scores": dict(scores)})


def result_line(result: Result) -> str:
    """A line of ``results.jsonl``."""
    return as_line(asdict(result))


def parse_results(content: bytes) -> dict[Key, Result]:
    """The answers of lines that :func:`result_line` wrote."""
    rows = map(_as_result, map(json.loads, content.decode().split("\n")[:-1]))
    return {result.key: result for result in rows}


def read_run(path: Path) -> tuple[dict[str, Any], dict[Key, Result], dict[Key, Scores]]:
    """Reads the folder of a run: what it is, its answers and scores.

    Raises:
        InputError: It is no folder of a run, or there are no answers or scores in it.
    """
    if not (path / RUN_FILE).is_file():
        raise InputError(f"{path} is not the folder of a run: {RUN_FILE} is missing")
    identity = read_json(path / RUN_FILE, f"run {path}", InputError)
    results = {result.key: result for result in read_rows(path / RESULTS_FILE, _as_result)}
    scores = dict(read_rows(path / SCORES_FILE, _as_scores))
    if not results or not scores:
        raise InputError(f"run {path} is not finished", hint="the command that began it goes on with it")
    return identity, results, scores


def read_settings(path: Path) -> dict[str, str]:
    """The settings of a run as a person reads them: those that were set, prompts and preferences aside."""
    identity = read_json(path / RUN_FILE, f"run {path}", InputError)
    left_out = ("alphas", "prompts", "format", "objectives", "rewards", *FILES)
    return {
        name: _short(value)
        for name, value in flat(identity).items()
        if value is not None and name.partition(".")[0] not in left_out
    }


def read_rows(file: Path, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Reads JSON lines; a last line without its end does not count.

    Raises:
        OutputError: A line is broken.
    """
    if not file.exists():
        return
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OutputError(f"{file} cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            yield read(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{file}:{number}: not a line that parm-mlx has written ({error})") from None


def _drop_cut_line(file: BinaryIO) -> None:
    """Removes what follows the last whole line of a file."""
    start = size = file.seek(0, os.SEEK_END)
    end = -1
    while start and end < 0:
        start = max(0, start - 2**16)
        file.seek(start)
        end = file.read(2**16).rfind(b"\n")
    if start + end + 1 < size:
        file.truncate(start + end + 1)


def differences(*identities: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """In what runs differ: the name of each such setting, and its value in every run, as a person reads it.

    Different prompts are one difference. Files are compared where all runs record them, which those of earlier versions
    do not.
    """
    left_out = {"rewards", *(name for name in FILES if not all(name in identity for identity in identities))}
    leaves = [flat(identity) for identity in identities]
    names = [name for name in dict.fromkeys(n for each in leaves for n in each) if name.split(".")[0] not in left_out]
    found: list[tuple[str, list[str]]] = []
    for name in names:
        values = [each.get(name) for each in leaves]
        if any(value != values[0] for value in values):
            if not name.startswith("prompts."):
                found.append((name, [_short(value) for value in values]))
            elif all(known != "prompts" for known, _ in found):
                found.append(("prompts", [f"{sum(n.startswith('prompts.') for n in each)}" for each in leaves]))
    return found


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted names."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{name}.{key}" if name and name != "settings" else str(key))
    return leaves


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _as_alpha(value: Sequence[float] | None) -> Alpha | None:
    return None if value is None else tuple(float(weight) for weight in value)


def _as_result(row: dict[str, Any]) -> Result:
    return Result(**{**row, "alpha": _as_alpha(row["alpha"])})


def _as_scores(row: dict[str, Any]) -> tuple[Key, Scores]:
    return (row["id"], _as_alpha(row["alpha"]), row["seed"]), {n: float(v) for n, v in row["scores"].items()}
