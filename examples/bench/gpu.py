"""Decoding and training on a graphics card, in at most 8 minutes: parts in processes of their own, each with a limit.

    python examples/bench/gpu.py --out gpu           on a machine with a card: pip install 'parm-mlx[cuda13]' first
    python examples/bench/gpu.py --out gpu --toy     all of it at toy size on the CPU, to try the script out

No network is needed: the models have random weights, which are made on the device. The results stand in OUT/gpu.json,
which is written again after every part; OUT/PART.txt has what a part printed. A part that fails or meets its limit
keeps what it had measured, and the next one begins.

    doctor       what parm-mlx finds, and whether the kernels are right there
    bfloat16     a base and a guide of 1B in the shapes of Llama 3, PBLoRA r1 = r2 = 4 on q, k and v, at 1 sequence, at
                 16 under 16 preferences, and at 1 after 2,048 tokens: base alone, guide alone, the adapted base alone,
                 two models, one shared backbone, one pass, and drafts of guide and base; with the kernels, which a toy
                 on the CPU has not
    twins        the same at 1 and 16 sequences without the kernels, and without drafts
    training     pairs a second of the training step in the shapes of SmolLM2-135M
    official     the official formula in PyTorch on the same shapes, where PyTorch is installed and sees a card
    tests        a part of the test suite on the device, where pytest is installed
    4-bit        as bfloat16, quantised; the last, since the first quantised product on CUDA compiles for minutes

The base has 8B parameters, or 3B or 1B where the card's memory is too small for two of them. Every way has the ratio of
the least time that the memory allows, the bytes read for a token over the card's bandwidth, to its time.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MINUTES = 8.0
LIMITS = {  # seconds of each part; all together end after MINUTES
    "doctor": 150,  # a kernel is compiled for every size that is checked
    "bfloat16": 150,
    "twins": 60,
    "training": 45,
    "official": 75,
    "tests": 60,
    "4-bit": 240,
}
TESTS = (
    *(f"tests/kernels/test_{name}.py" for name in ("lowrank", "logprob", "combine")),
    *("tests/pblora", "tests/guidance/test_guided.py", "tests/guidance/test_shared.py"),
)
TOY_TESTS = ("tests/kernels/test_combine.py",)
CLI = [sys.executable, "-m", "parm_mlx.cli.main"]


def command(part: str, options: argparse.Namespace) -> list[str] | str:
    """Returns the command of a part, or the reason why it is left out."""
    toy = ["--toy"] if options.toy else []
    if part == "doctor":
        return [*CLI, "doctor", "--json"]
    if part == "tests":
        if importlib.util.find_spec("pytest") is None:
            return "pytest is not installed"
        files = [str(ROOT / name) for name in (TOY_TESTS if options.toy else TESTS)]
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files]
    if part == "official":
        if importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed"
        return [sys.executable, str(HERE / "gpu_official.py"), result(part, options), *toy]
    if part == "training":
        return [sys.executable, str(HERE / "gpu_training.py"), result(part, options), *toy]
    bandwidth = ["--bandwidth", str(options.bandwidth)] if options.bandwidth else []
    return [sys.executable, str(HERE / "gpu_decoding.py"), part, result(part, options), *toy, *bandwidth]


def result(part: str, options: argparse.Namespace) -> str:
    """Returns the file that a part writes."""
    return str(options.out / f"{part}.json")


def environment(part: str, options: argparse.Namespace) -> dict[str, str]:
    """Returns the variables of a part: folders that all share, for compiled kernels and records, and its own."""
    own = {"MLX_PTX_CACHE_DIR": os.environ.get("MLX_PTX_CACHE_DIR", str(options.out / "compiled"))}
    own |= {"XDG_CACHE_HOME": str(options.out / "cache")}
    own |= {"PARM_MLX_TEST_DEVICE": "cpu" if options.toy else "gpu"} if part == "tests" else {}
    own |= {"PARM_MLX_KERNELS": "off"} if part == "twins" else {}
    own |= {"PARM_MLX_KERNELS": "on"} if part in ("bfloat16", "4-bit") and not options.toy else {}
    return {**os.environ, **own}


def run(part: str, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one part; returns how it ended, its seconds, and what it measured."""
    arguments = command(part, options)
    if isinstance(arguments, str):
        return {"ended": f"left out: {arguments}"}
    if limit < 1:
        return {"ended": "left out: no time was left"}
    Path(result(part, options)).unlink(missing_ok=True)  # of an earlier run
    log, began = options.out / f"{part}.txt", time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            arguments,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment(part, options),
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
            process.wait()
    return {"ended": ended, "seconds": round(time.perf_counter() - began, 1), "measured": measured(part, log, options)}


def measured(part: str, log: Path, options: argparse.Namespace) -> Any:
    """Returns what a part has written: its JSON, or its last line; None if there is nothing."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    if part == "doctor":
        found = [line for line in text.splitlines() if line.startswith("{")]
        return json.loads(found[-1]) if found else None
    if part == "tests":
        return text.splitlines()[-1] if text else None
    path = Path(result(part, options))
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def device(options: argparse.Namespace) -> dict[str, Any]:
    """Describes the device, in a process of its own, so that this one holds no memory of it.

    Raises:
        SystemExit: There is no back end or no card; the message is one line.
    """
    arguments = [sys.executable, str(HERE / "gpu_decoding.py"), "device", *(["--toy"] if options.toy else [])]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SystemExit(lines[-1])
    description: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return description


def main() -> None:
    """Runs the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS), help="parts to run (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all parts together (default: {MINUTES:g})")
    parser.add_argument("--bandwidth", type=float, help="GB/s of the card's memory, where parm-mlx does not know them")
    parser.add_argument("--toy", action="store_true", help="toy size on the CPU, to try the script out")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"device": device(options), "toy": options.toy, "parts": {}}
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        found["parts"][part] = own = run(part, min(LIMITS[part], end - time.monotonic()), options)
        partial = options.out / "gpu.json.partial"
        partial.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(options.out / "gpu.json")
        print(f"{part}: {own['ended']}" + (f", {own['seconds']:.0f} s" if "seconds" in own else ""), flush=True)


if __name__ == "__main__":
    main()
