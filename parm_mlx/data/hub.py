"""Data sets on the Hugging Face hub, through the package ``datasets``: the extra ``data``."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from parm_mlx.data.files import SPLITS, Part
from parm_mlx.data.pairs import Problems
from parm_mlx.errors import DataError, RunError, first_line

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<chosen>[\w./-]+(?:,[\w./-]+)*))?"
)
_SPLITS = {**{name: name for name in SPLITS}, "validation": "valid", "val": "valid", "dev": "valid"}
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class HubPart(Part):
    """One split of a data set.

    Attributes:
        dataset: A ``datasets.Dataset``; its rows lie in a file and are read as they are needed.
    """

    dataset: Any = field(repr=False)

    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (``name row N``, row); a column without a value is a missing field."""
        for number, row in enumerate(self.dataset, 1):
            yield f"{self.name} row {number}", _present(row)

    def identity(self) -> dict[str, str]:
        """The commit on the hub, where it is known, and the fingerprint of the rows."""
        sources = " ".join(self.dataset.info.download_checksums or ())
        commit = _COMMIT.search(sources)
        return {**({"revision": commit[1]} if commit else {}), "fingerprint": self.dataset._fingerprint}


def is_hub_id(source: str) -> bool:
    """Whether a text may be the id of a data set: ``owner/name``, ``owner/name@revision:part,part``."""
    return _ID.fullmatch(source) is not None


def hub_parts(source: str) -> list[Part]:
    """The splits of a data set, those of train first, then valid and test.

    Args:
        source: ``owner/name``, then ``@`` and a revision if it shall not be the newest, then ``:`` and its parts if not
            all of it is meant: configurations or folders, separated by commas. The name of a part tells what its rows
            judge, where they do not say it themselves.

    Raises:
        DataError: There is no such data set or part, it needs permission, or it has no split for training; or the
            package ``datasets`` is not installed.
        RunError: The hub cannot be reached, or the download failed.
    """
    found = _ID.fullmatch(source)
    assert found is not None, source
    name, revision = found["name"], found["revision"]
    chosen = found["chosen"].split(",") if found["chosen"] else [None]
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data {source}: no such file or folder, and reading it from the hub needs the package datasets",
            hint="pip install 'parm-mlx[data]'",
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    parts = []
    with _clear_errors(source):
        known = datasets.get_dataset_config_names(name, revision=revision) if found["chosen"] else []
        for part in chosen:
            where = {"name": part} if part in known else {"data_dir": part}
            loaded = datasets.load_dataset(name, revision=revision, **where)
            if not any(_SPLITS.get(split) == "train" for split in loaded):
                raise DataError(f"data {source}: no split train, only {', '.join(loaded)}")
            parts += [
                HubPart(f"{name}{f':{part}' if part else ''}[{split}]", _SPLITS[split], _last(part), rows)
                for split, rows in loaded.items()
                if split in _SPLITS
            ]
    return sorted(parts, key=lambda part: SPLITS.index(part.split))


@contextmanager
def _clear_errors(source: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            hint = "accept its terms there, then `hf auth login`"
            raise DataError(f"data {source} needs permission on the hub", hint=hint) from error
        raise DataError(f"data {source}: no such file or folder, and no such data set on the hub") from error
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"data {source}: no such part of the data set: {first_line(error)}") from error
    except ConnectionError as error:
        raise RunError(
            f"data {source} is not on this machine, and the hub cannot be reached",
            hint="if it is meant to be a local file or folder, check its path",
        ) from error
    except (DatasetsError, OSError, RuntimeError) as error:
        raise RunError(f"data {source} could not be loaded: {first_line(error)}") from error


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return value


def _last(part: str | None) -> str | None:
    return part.rpartition("/")[2] if part else None
