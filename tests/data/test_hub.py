"""Data sets on the hub, with a module that stands in for the package ``datasets``."""

import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from parm_mlx.data.dataset import load_data
from parm_mlx.data.inspect import inspect_data
from parm_mlx.data.sources import is_hub_id
from parm_mlx.errors import DataError, ParmError, RunError
from parm_mlx.training.inputs import data_files

SAFE = {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
SHA = "0123456789" * 4
SOURCES = {f"hf://datasets/o/safe@{SHA}/train.parquet": {}}


@dataclass
class Rows:
    rows: list[dict[str, Any]]
    info: Any = field(default_factory=lambda: SimpleNamespace(download_checksums=SOURCES))
    _fingerprint: str = "f00d"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Hub:
    """What is on the hub: for each id, and configuration or folder, its splits; and how it was asked."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, str | None], dict[str, list[dict[str, Any]]]] = {}
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def get_dataset_config_names(self, name: str, revision: str | None = None) -> list[str]:
        return ["default", "config"]

    def load_dataset(self, path: str, **where: Any) -> dict[str, Rows]:
        self.asked.append(where)
        if self.error:
            raise self.error
        return {key: Rows(rows) for key, rows in self.sets[path, where.get("name") or where.get("data_dir")].items()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    module, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    names, bases = ("DatasetsError", "DatasetNotFoundError"), ((Exception,), (FileNotFoundError,))
    vars(exceptions).update({name: type(name, base, {}) for name, base in zip(names, bases, strict=True)})
    vars(module).update(
        exceptions=exceptions,
        load_dataset=made.load_dataset,
        get_dataset_config_names=made.get_dataset_config_names,
        disable_progress_bars=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    return made


def test_ids() -> None:
    for source in ("o/n", "PKU-Alignment/PKU-SafeRLHF-10K", "o/n@main", "o/n:a", "o/n@v1.0:a/b,c-d"):
        assert is_hub_id(source)
    for source in ("n", "/o/n", "~/o/n", "o/n/m", "./o", "o/n:", "o/n@", "o/n:a,"):
        assert not is_hub_id(source)


def test_a_data_set_is_read_like_files(hub: Hub) -> None:
    train, other = SAFE, {**SAFE, "prompt": "P"}
    hub.sets["o/safe", None] = {"test": [SAFE], "train": [train], "validation": [other, train], "extra": [{}]}
    data = load_data("o/safe")
    assert data.objectives == ("helpful", "harmless")
    assert [(p.where, p.preferred) for p in data.train] == [("o/safe[train] row 1", {"helpful": 0, "harmless": 1})]
    assert [p.where for p in data.valid] == ["o/safe[validation] row 1"]
    assert data_files(data) == [
        {"file": "o/safe[train]", "revision": SHA, "fingerprint": "f00d", "pairs": 1},
        {"file": "o/safe[validation]", "revision": SHA, "fingerprint": "f00d", "pairs": 2},
    ]
    assert inspect_data("o/safe")["files"]["o/safe[test]"] == "PKU-SafeRLHF"


def test_folders_and_configurations_are_objectives(hub: Hub) -> None:
    row = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    hub.sets["o/hh", "x/harmless-base"] = {"train": [row], "test": [row]}
    hub.sets["o/hh", "config"] = {"train": [row]}
    data = load_data("o/hh@v2:x/harmless-base,config", hold_out=False)
    assert [(p.where, p.preferred) for p in data.train] == [
        ("o/hh:x/harmless-base[train] row 1", {"harmless-base": 0, "config": 0})
    ]
    assert hub.asked == [{"revision": "v2", "data_dir": "x/harmless-base"}, {"revision": "v2", "name": "config"}]


def test_bad_rows_and_columns_without_a_value(hub: Hub) -> None:
    """In a table every row has every column; a label that is not there is empty."""
    good = {"prompt": "Q", "responses": ["a", "b"], "preferred": {"x": 0, "y": None}, "chosen": None}
    hub.sets["o/n", None] = {"train": [good, {**good, "responses": ["a", None]}, {**good, "prompt": None}]}
    with pytest.raises(DataError) as caught:
        load_data("o/n")
    assert str(caught.value).splitlines() == [
        "o/n: 2 rows cannot be used",
        "  o/n[train] row 2: the second response must be a text, not null",
        "  o/n[train] row 3: 'prompt' is missing; the row has 'responses', 'preferred'",
    ]


def test_a_data_set_without_a_split_to_train_on(hub: Hub) -> None:
    hub.sets["o/n", None] = {"validation": [], "other": []}
    with pytest.raises(DataError, match="no split train, only validation, other"):
        load_data("o/n")


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        (
            "DatasetNotFoundError",
            "it doesn't exist",
            DataError,
            "data o/n: no such file or folder, and no such data set",
        ),
        ("DatasetNotFoundError", "it is a gated dataset", DataError, "data o/n needs permission on the hub"),
        ("FileNotFoundError", "none\nat all", DataError, r"data o/n: no such configuration or folder: none$"),
        ("DatasetsError", "broken\nfile", RunError, r"data o/n could not be loaded: broken$"),
        ("ConnectionError", "x", RunError, "data o/n is not on this machine, and the hub cannot be reached"),
    ],
)
def test_what_can_go_wrong_is_one_line(hub: Hub, name: str, text: str, kind: type[ParmError], message: str) -> None:
    import datasets.exceptions

    hub.error = (getattr(datasets.exceptions, name, None) or getattr(builtins, name))(text)
    with pytest.raises(kind, match=message):
        load_data("o/n")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match="data o/n: no such file or folder, and reading it from the hub needs"
    ) as caught:
        load_data("o/n")
    assert caught.value.hint == "pip install 'parm-mlx[data]'"
    with pytest.raises(DataError, match=r"data o/n\.jsonl: no such file or folder$"):
        load_data("o/n.jsonl")
