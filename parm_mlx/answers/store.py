"""The folder of a run: its settings (``run.json``), answers (``results.jsonl``) and scores (``scores.jsonl``).

Answers are appended as they end. A last line that a kill or a full disk has cut off does not count; it is removed when
the run is resumed. Reading a run changes nothing.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from parm_mlx.errors import InputError, OutputError
from parm_mlx.files import disk_errors, expanded, is_file, read_json
from parm_mlx.guidance.templates import Content
from parm_mlx.outputs import check_claim, claimed, mark, own, read_marker, write_file
from parm_mlx.preference import Alpha

RUN_FILE, RESULTS_FILE, SCORES_FILE = "run.json", "results.jsonl", "scores.jsonl"
FORMAT = 1
RESUMED = "resumed_with_changes"
FILES = ("models", "reward_files")  # fingerprints of what a run reads; --resume-anyway accepts changes of these
_RANK_FILE = re.compile(r"results\.rank\d+\.jsonl")
Key = tuple[str, Alpha | None, int]  # id of the prompt, preference, seed
Scores = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        id: Id of its prompt.
        alpha: The preference; None is the base alone.
        seed: Seed of the sampling.
        tokens: Length in tokens.
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
        """Identifies the answer."""
        return self.id, self.alpha, self.seed


class RunFolder:
    """The files of a run.

    Args:
        path: The folder; :meth:`locked` makes it if necessary.
        identity: Objectives and settings that tell the run from others, as JSON values; ``models``, the fingerprints
            of its models by role; and ``reward_files``, those of its rewards by SPEC.
        anyway: Accept models or rewards other than those that the run began with; ``run.json`` records the change.
        kind: What the folder is claimed as.

    Attributes:
        changed: Names of the models and rewards that have changed.

    Raises:
        OutputError: The folder holds another run, or something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], anyway: bool = False, kind: str = "run") -> None:
        self.path, self._kind = expanded(path, OutputError), kind
        self.identity = {"format": FORMAT, **json.loads(json.dumps(identity))}
        self._anyway = anyway
        check_claim(self.path, kind)
        self._compare()

    def _compare(self) -> None:
        """Compares this run with the one that the folder holds."""
        self.changed: list[str] = []
        self.rewards: dict[str, str] = {}
        self._resumed: list[Any] = []
        if not (self.path / RUN_FILE).exists():
            return
        found: dict[str, Any] = read_json(self.path / RUN_FILE, f"run {self.path}", OutputError)
        self.rewards, self._resumed = dict(found.pop("rewards", {})), list(found.pop(RESUMED, []))
        # A reward that only one of the two has is not a difference: other rewards may score the same answers.
        before = found.get("reward_files", {})
        shared = {spec: before.get(spec, now) for spec, now in self.identity.get("reward_files", {}).items()}
        differing = differences({**found, "reward_files": shared}, self.identity)
        if not differing:
            return
        self.changed = [name for name, _ in differing if name.partition(".")[0] in FILES]
        files_alone = len(self.changed) == len(differing)
        if not (files_alone and self._anyway):
            shown = "; ".join(f"{name}: {theirs}, now {ours}" for name, (theirs, ours) in differing[:3])
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            hint = "go on with --resume-anyway" if files_alone else "remove it"
            raise OutputError(f"{self.path} holds another run ({shown}{more})", hint=f"choose another --out, or {hint}")
        results = self.path / RESULTS_FILE
        answers = results.read_bytes().count(b"\n") if results.exists() else 0
        self._resumed.append({"answers": answers, "changed": dict(differing)})

    def _write_identity(self) -> None:
        content = {**self.identity, "rewards": self.rewards, **({RESUMED: self._resumed} if self._resumed else {})}
        write_file(self.path / RUN_FILE, [json.dumps(content, indent=2, ensure_ascii=False) + "\n"])

    def set_rewards(self, specs: Mapping[str, str]) -> None:
        """Records the rewards by name, and drops scores of rewards that have changed."""
        outdated = {name.removeprefix("reward_files.") for name in self.changed}
        dropped = {n for n, spec in self.rewards.items() if specs.get(n) != spec or spec in outdated}
        kept = {key: {n: v for n, v in row.items() if n not in dropped} for key, row in self.scores().items()}
        self.rewards = dict(specs)
        self.write_scores(kept)
        self._write_identity()

    def results(self) -> dict[Key, Result]:
        """Reads the answers, with those that other processes have not handed over yet."""
        files = [self.path / RESULTS_FILE, *self.rank_files()]
        return {result.key: result for file in files for result in _read_rows(file, _as_result)}

    def rank_files(self) -> list[Path]:
        """Returns the files in which other processes keep their answers until the main one has them."""
        names = (read_marker(self.path) or {"files": ()})["files"]
        return sorted(self.path / name for name in names if _RANK_FILE.fullmatch(name) and (self.path / name).exists())

    def scores(self) -> dict[Key, Scores]:
        """Reads the scores."""
        return dict(_read_rows(self.path / SCORES_FILE, _as_scores))

    def write_results(self, results: Iterable[Result]) -> None:
        """Replaces all answers, in this order."""
        write_file(self.path / RESULTS_FILE, (result_line(result) for result in results))

    def write_scores(self, scores: Mapping[Key, Scores]) -> None:
        """Replaces all scores, in this order."""
        write_file(self.path / SCORES_FILE, (score_line(key, values) for key, values in scores.items()))

    @contextmanager
    def locked(self, processes: int = 1) -> Iterator[None]:
        """Holds the folder for this process, one of several that share the work; writes ``run.json``.

        Raises:
            OutputError: Another process works in the folder, it has become another run's, or it cannot be made.
        """
        with claimed(self.path, self._kind, f"{self.path} is in use: another process works on the same run"):
            self._compare()
            own(self.path, [RESULTS_FILE, SCORES_FILE, *map(rank_file, range(1, processes))])
            self._write_identity()
            yield

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yields a function that appends a line to a file of the folder and flushes it."""
        path = self.path / name
        mark(self.path, self._kind)  # another machine may not see the folder of the main process
        own(self.path, [name])
        with disk_errors(path), path.open("a+b") as file:
            file.seek(0)
            content = file.read(path.stat().st_size)
            if content and not content.endswith(b"\n"):  # the last line was cut off
                file.truncate(content.rfind(b"\n") + 1)

            def append(line: str) -> None:
                with disk_errors(path):
                    file.write(line.encode())
                    file.flush()

            yield append


def rank_file(rank: int) -> str:
    """Returns the name of the file in which a process other than the main one keeps its answers."""
    return f"results.rank{rank}.jsonl"


def result_line(result: Result) -> str:
    """Returns a line of ``results.jsonl``."""
    return json.dumps(asdict(result), ensure_ascii=False) + "\n"


def score_line(key: Key, scores: Mapping[str, float]) -> str:
    """Returns a line of ``scores.jsonl``."""
    row = {"id": key[0], "alpha": key[1], "seed": key[2], "scores": dict(scores)}
    return json.dumps(row, ensure_ascii=False) + "\n"


def parse_results(content: bytes) -> list[Result]:
    """Reads lines that :func:`result_line` made."""
    return [_as_result(json.loads(line)) for line in content.decode().split("\n")[:-1]]


def read_run(path: Path) -> tuple[dict[str, Any], dict[Key, Result], dict[Key, Scores]]:
    """Reads the identity, answers and scores of a finished run; raises InputError if the folder does not hold them."""
    if not is_file(path / RUN_FILE):
        raise InputError(f"{path} is not the folder of a run: {RUN_FILE} is missing")
    identity = read_json(path / RUN_FILE, f"run {path}", InputError)
    results = {result.key: result for result in _read_rows(path / RESULTS_FILE, _as_result)}
    scores = dict(_read_rows(path / SCORES_FILE, _as_scores))
    if not results or not scores:
        raise InputError(f"run {path} is not finished", hint="the command that began it goes on with it")
    return identity, results, scores


def read_settings(path: Path) -> dict[str, str]:
    """Reads the settings of a run for display; prompts, preferences and what was not set are left out."""
    left_out = {"alphas", "prompts", "format", "objectives", "rewards", RESUMED, *FILES}
    flat = _flat(read_json(path / RUN_FILE, f"run {path}", InputError))
    shown = {name: value for name, value in flat.items() if name.partition(".")[0] not in left_out}
    return {name: _short(value) for name, value in shown.items() if value is not None}


def differences(*identities: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns the name of each setting that differs between runs, and its value in every run, for display.

    Different prompts are one difference. Rewards are not compared: others may score the same answers.
    """
    flat = [_flat(identity) for identity in identities]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for each in flat for name in each):
        values = [each.get(name) for each in flat]
        if name.split(".")[0] == "rewards" or all(value == values[0] for value in values):
            continue
        if name.startswith("prompts."):
            found["prompts"] = [str(sum(n.startswith("prompts.") for n in each)) for each in flat]
        else:
            found[name] = [_short(value) for value in values]
    return list(found.items())


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted names; ``settings.`` is not part of them."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{name}.{key}" if name and name != "settings" else str(key))
    return leaves


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _read_rows(file: Path, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Reads JSON lines; a last line without its end does not count, and another broken one is an OutputError."""
    if not file.exists():
        return
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OutputError(f"{file} cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            yield read(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(f"{file}:{number}: not a line that parm-mlx has written ({error})") from None


def _as_alpha(value: Sequence[float] | None) -> Alpha | None:
    return None if value is None else tuple(float(weight) for weight in value)


def _as_result(row: dict[str, Any]) -> Result:
    return Result(**{**row, "alpha": _as_alpha(row["alpha"])})


def _as_scores(row: dict[str, Any]) -> tuple[Key, Scores]:
    return (row["id"], _as_alpha(row["alpha"]), row["seed"]), {n: float(v) for n, v in row["scores"].items()}
