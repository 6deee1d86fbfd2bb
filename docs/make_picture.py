"""Draws docs/report.png, the page of an evaluated run, with Chromium.

parm-mlx evaluate --model smollm2 --prompts QUESTIONS --temp 0.7 --max-tokens 80 --out run
python docs/make_picture.py run
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parent / "report.png"
WIDTH, HEIGHT = 1000, 780
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of parm-mlx evaluate")
    page = parser.parse_args().run / "report.html"
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or not page.exists():
        sys.exit(f"{page} is missing" if browser else f"none of {', '.join(BROWSERS)} is installed")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ]
    with tempfile.TemporaryDirectory() as profile:
        command += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=60)
    print(PICTURE)


if __name__ == "__main__":
    main()
