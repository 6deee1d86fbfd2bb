"""A table of models × ways to divide them × processes: whether all give the tokens of one process.

    python tests/shard_table.py

It takes about ten minutes on two cores; the suite has a part of it (tests/guidance/test_shard.py). Models have random
weights, but for the bundled pair and SmolLM2, which is fetched at first use.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shard_cases
from ring import ring

LIMIT = 1200


def of(size: int, folder: Path) -> list[dict[str, Any]]:
    """What so many processes have found, by rank."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if size > 1:
        environment |= ring(folder, size)
    command = [sys.executable, shard_cases.__file__, str(folder), "whole"]
    processes = [
        subprocess.Popen(
            command,
            env=environment | ({"MLX_RANK": str(rank)} if size > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        return [json.loads(process.communicate(timeout=LIMIT)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def cell(found: list[dict[str, Any]], alone: dict[str, Any]) -> str:
    """What holds of a case: the parts whose tokens are those of one process, the refusal, or what differs."""
    first, *others = found
    if any(other != first for other in others):
        return "**processes differ**"
    if "refused" in first:
        return f"refused: {first['refused']}"
    differing = [part for part, tokens in first["tokens"].items() if tokens != alone["tokens"].get(part)]
    same = ", ".join(part for part in first["tokens"] if part not in differing)
    noise = "; with noise alike" if "noisy" in first else ""
    return f"**differs: {', '.join(differing)}**" if differing else f"= {same}{noise}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4], help="numbers of processes")
    sizes = parser.parse_args().sizes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard_cases.write_models(folder)
        (alone,) = of(1, folder)
        for size in sizes:
            found = of(size, folder)
            print(f"\n| {size} processes | " + " | ".join(shard_cases.HOWS) + " |")
            print("|---" * (1 + len(shard_cases.HOWS)) + "|")
            for models, _ in shard_cases.cases(folder):
                cases = [[each[f"{models} {how}"] for each in found] for how in shard_cases.HOWS]
                print(f"| {models} | " + " | ".join(cell(case, alone[f"{models} alone"]) for case in cases) + " |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
