"""Draws docs/report.png, the page of the evaluated SmolLM2 PARM, with Chromium, of its kept answers.

python docs/make_picture.py
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
from parm_mlx.answers.store import read_run, read_settings
from parm_mlx.evaluation.report.page import write_report
from parm_mlx.evaluation.summary import Run, summarise

ANSWERS = Path(__file__).parents[1] / "examples" / "smollm2" / "answers.tar.xz"
PICTURE = Path(__file__).parent / "report.png"
WIDTH, HEIGHT = 1000, 700
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make_page(folder: Path) -> Path:
    """Writes the page into a folder as ``parm-mlx evaluate`` does; nothing is generated."""
    with tarfile.open(ANSWERS) as archive:
        archive.extractall(folder, filter="data")
    identity, results, scores = read_run(folder)
    answers = list(results.values())
    summary = summarise(Run("smollm2", tuple(identity["objectives"]), identity["rewards"], answers, scores))
    summary["settings"] = read_settings(folder)
    write_report(summary, answers, scores, folder, print)
    return folder / "report.html"


def main() -> None:
    """Draws the picture."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ]
    with tempfile.TemporaryDirectory() as run, tempfile.TemporaryDirectory() as profile:
        page = make_page(Path(run))
        command += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=60)
    print(PICTURE)


if __name__ == "__main__":
    main()
