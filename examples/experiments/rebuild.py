"""Makes the pages of experiments of their kept answers, without training or generating, SmolLM2's card and the tables.

python examples/experiments/rebuild.py
python examples/experiments/rebuild.py adapters baselines
"""

import argparse
import subprocess
import sys

import archive


def main() -> None:
    """Runs the scripts with ``--stored``, then those of the card and of the tables."""
    known = sorted(file.name.removesuffix(".tar.xz") for file in (archive.HERE / "answers").glob("*.tar.xz"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(known)}")
    names = parser.parse_args().names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no answers are kept of {', '.join(unknown)}; there are {', '.join(known)}")
    for name in names:
        print(name, flush=True)
        subprocess.run([sys.executable, str(archive.HERE / f"{name}.py"), "--stored"], check=True)
    for script in ("examples/smollm2/card.py", "docs/make_results.py"):
        subprocess.run([sys.executable, str(archive.HERE.parents[1] / script)], check=True)


if __name__ == "__main__":
    main()
