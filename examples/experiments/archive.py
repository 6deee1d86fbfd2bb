"""What the page of an experiment is made of, in one compressed file: ``answers/NAME.tar.xz``."""

import atexit
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from parm_mlx.answers.store import RESULTS_FILE, RUN_FILE, SCORES_FILE

HERE = Path(__file__).parent
WORK = b"build/experiments"  # the name of the work folder in paths that a run has recorded
RUN_FILES = (RUN_FILE, RESULTS_FILE, SCORES_FILE)


def of(name: str, out: Path = HERE) -> Path:
    """The file of an experiment, beside its page."""
    return out / "answers" / f"{name}.tar.xz"


def pack(work: Path, files: Iterable[Path], out: Path) -> None:
    """Writes files, given relative to ``work``; the same bytes for the same content, wherever ``work`` is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w:xz") as packed:
        for file in sorted(files):
            content = (work / file).read_bytes().replace(str(work.resolve()).encode(), WORK)
            entry = tarfile.TarInfo(file.as_posix())
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))


def unpack(file: Path) -> Path:
    """Returns a folder with the files, which is removed at the end of the program."""
    if not file.exists():
        raise SystemExit(f"error: there is no {file}: run the experiment without --stored")
    folder = Path(tempfile.mkdtemp(prefix="parm-mlx-stored-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(file) as packed:
        packed.extractall(folder, filter="data")
    return folder
