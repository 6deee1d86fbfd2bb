"""What the check of the kernels found on this machine, kept in the user's cache folder.

A record counts for the machine, operating system, MLX and kernel texts that it was made with. Any other, or one that
cannot be read, is as good as none.
"""

import json
import os
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from parm_mlx.errors import RunError
from parm_mlx.kernels.source import fingerprint


def record_path() -> Path:
    """The file: ``$XDG_CACHE_HOME/parm-mlx/kernels.json``, or below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parm-mlx" / "kernels.json"


def circumstances() -> dict[str, str]:
    """What a record depends on."""
    return {
        "device": str(mx.device_info().get("device_name", "")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mlx": version("mlx"),
        "kernels": fingerprint(),
    }


def save_record(passed: Iterable[tuple[str, str]]) -> Path:
    """Writes which (kernel, dtype) have passed here, in the place of what was known before.

    Returns:
        The file.

    Raises:
        RunError: It cannot be written.
    """
    path = record_path()
    record = {"made with": circumstances(), "passed": sorted(map(list, passed))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as partial:
            json.dump(record, partial, indent=2)
        Path(partial.name).replace(path)
    except OSError as error:
        raise RunError(f"the record of the kernels' check could not be written to {path}: {error.strerror}") from error
    return path


def read_record() -> frozenset[tuple[str, str]]:
    """Which (kernel, dtype) have passed here; none where no record counts."""
    try:
        record = json.loads(record_path().read_text(encoding="utf-8"))
        if record["made with"] != circumstances():
            return frozenset()
        return frozenset((str(kernel), str(dtype)) for kernel, dtype in record["passed"])
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()
