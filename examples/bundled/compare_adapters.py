"""Compares PBLoRA with plain LoRA, SVD-LoRA and GenARM on the bundled world.

    python examples/bundled/compare_adapters.py

All train on the pairs of make_parm.py, with its settings but fewer steps, and are measured as measure.py does. Each has
as many trainable numbers as PBLoRA, or as near as ranks allow; GenARM is two plain LoRA adapters of one objective each,
of half the rank, which also share the steps. What is done is kept in the work folder: a run that was stopped goes on.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import parm_mlx  # loads the fast BLAS before mlx

# isort: split
import make_parm
import measure
from rich.console import Console

from parm_mlx.malloc import keep_freed_memory
from parm_mlx.pblora import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.progress import ConsoleProgress
from parm_mlx.training.run import train

HERE = Path(__file__).parent
SYSTEMS = {"PBLoRA": "pblora", "LoRA": "lora", "SVD-LoRA": "svd-lora", "GenARM": "lora"}
RANK = 4
PAGE = """# PBLoRA against other adapters

On the bundled world, {seeds} seeds, mean ± standard deviation over them. Training: {iters} steps of {batch} pairs,
GenARM's two models {arm_iters} each. Measuring: {questions} held-out questions at {points} preferences. A corner
difference is the mean score at weight 1 less that at weight 0, in standard deviations of the unguided answers; the mean
inner product is of α and the scores in that unit. Few steps and a small model: the table says how the adapters do under
equal and tight means, not what each could reach. Made by `python examples/bundled/compare_adapters.py`.

{table}
"""


def configs(system: str, seed: int, args: argparse.Namespace) -> list[TrainConfig]:
    """The training runs that a system is made of."""
    alone = [make_parm.OBJECTIVES] if system != "GenARM" else [(name,) for name in make_parm.OBJECTIVES]
    iters = args.iters if len(alone) == 1 else args.arm_iters
    return [
        make_parm.settings(
            base=args.base,
            pairs=args.work / "pairs.jsonl",
            out=args.work / "compare" / f"{system.lower()}-{seed}{'-' + names[0] if len(names) == 1 else ''}",
            adapter=SYSTEMS[system],
            objectives=names,
            r1=RANK // len(alone),
            r2=RANK // len(alone),
            lora_alpha=2.0 * RANK // len(alone),
            iters=iters,
            batch_size=args.batch_size,
            warmup=max(1, iters // 10),
            val_batches=0,
            seed=seed,
        )
        for names in alone
    ]


def run(system: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one system with one seed."""
    runs = configs(system, seed, args)
    for config in runs:
        train(config, resume=True, force=True, progress=ConsoleProgress(Console(stderr=True)))
    parms = [config.out for config in runs]
    numbers = sum(tensor.size for parm in parms for tensor in read_adapter(Path(parm))[1].values())
    model, tokenizer = parm_mlx.load(args.base, parms)
    measured = measure.measure(model, tokenizer, args.questions, args.step)
    return {"numbers": numbers, "guided": measured["guided"], **measured["summary"]}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The results as Markdown, one line per system."""
    names = make_parm.OBJECTIVES
    heads = [f"Spearman {name}" for name in names] + [f"corners {name} (sd)" for name in names]
    lines = [
        "| " + " | ".join(["system", *heads, "mean inner product", "trainable numbers"]) + " |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for system, runs in results.items():
        cells = [spread([run[name]["spearman"] for run in runs]) for name in names]
        cells += [spread([run[name]["corner_difference_sd"] for run in runs]) for name in names]
        cells += [spread([run["mip"] for run in runs]), f"{runs[0]['numbers']:,}"]
        lines.append("| " + " | ".join([system, *cells]) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def main() -> None:
    """Runs what is not done yet, and writes adapters.json and ADAPTERS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=make_parm.MODELS / "base")
    parser.add_argument("--work", type=Path, default=make_parm.ROOT / "build" / "bundled")
    parser.add_argument("--out", type=Path, default=HERE, help="where adapters.json and ADAPTERS.md go")
    parser.add_argument("--prompts", type=int, default=4000, help="sampled for pairs, if there are none yet")
    parser.add_argument("--iters", type=int, default=60, help="steps of each training")
    parser.add_argument("--arm-iters", type=int, help="steps of each of GenARM's models (default: half of --iters)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--step", type=float, default=0.25, help="distance between the weights of the alpha grid")
    args = parser.parse_args()
    args.arm_iters = args.arm_iters or max(1, args.iters // 2)
    keep_freed_memory()

    make_parm.ensure_pairs(args.base, args.work, args.prompts)
    settings = {name: getattr(args, name) for name in ("iters", "arm_iters", "batch_size", "questions", "step")}
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    (args.work / "compare").mkdir(exist_ok=True)
    for seed in range(args.seeds):
        for system in SYSTEMS:
            file = args.work / "compare" / f"{system.lower()}-{seed}.json"
            done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if done.get("settings") != settings:
                done = {"settings": settings, **run(system, seed, args)}
                file.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
            results[system].append(done)
            print(table({system: results[system] for system in SYSTEMS if results[system]}), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "adapters.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    page = PAGE.format(
        seeds=args.seeds,
        iters=args.iters,
        batch=args.batch_size,
        arm_iters=args.arm_iters,
        questions=args.questions,
        points=len(results["PBLoRA"][0]["guided"]),
        table=table(results),
    )
    (args.out / "ADAPTERS.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
