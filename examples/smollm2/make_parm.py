"""Makes the PARM of SmolLM2-135M-Instruct: cheer against formality.

    python examples/smollm2/make_parm.py --out work

Three commands, each of which goes on where it was interrupted: `data sample` (the base answers 640 training questions
under three system prompts), `train`, and `evaluate` (150 held-out questions about other topics) with the adapter in 16
bits, as it is part of the package. The seeds and the questions were fixed before any training. checks.py then compares
the answers with the base's.
"""

import argparse
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import mlx.core as mx

from parm_mlx.named import MODELS
from parm_mlx.pblora.adapter import read_adapter, save_adapter

HERE = Path(__file__).resolve().parent
SAMPLE_SEED, TRAIN_SEED, EVALUATE_SEED = 0, 0, 1000
SYSTEM_PROMPTS = (
    "none",
    "You are a warm, cheerful and encouraging friend who loves to help. Be positive.",
    "Answer factually and formally, like an encyclopedia, without any friendly words.",
)
REWARDS = ("cheer=cheer", "formality=formality")


def flags(**values: object) -> list[str]:
    """Returns flags as a command line has them; a sequence is a flag that is given several times."""
    listed = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return [
        text
        for name, several in listed.items()
        for one in several
        for text in (f"--{name.replace('_', '-')}", str(one))
    ]


def run(*command: str) -> None:
    """Runs a command of parm-mlx."""
    print("parm-mlx", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "parm_mlx.cli.main", *command], check=True)


def pack(parm: Path, out: Path) -> None:
    """Writes an adapter in 16 bits, for the model of the name ``smollm2``."""
    config, tensors = read_adapter(parm)
    out.mkdir(exist_ok=True)
    halves = {name: tensor.astype(mx.float16) for name, tensor in tensors.items()}
    save_adapter(out, replace(config, base_model="smollm2"), halves)


def main() -> None:
    """Runs the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of answers, adapter and run")
    parser.add_argument("--config", type=Path, default=HERE / "train.yaml", help="settings of the training")
    out, config = (options := parser.parse_args()).out, options.config
    samples, parm, adapter = out / "samples", out / "parm", out / "adapter"
    sampling = flags(
        model="smollm2",
        prompts=HERE / "train_prompts.txt",
        reward=REWARDS,
        num_samples=len(SYSTEM_PROMPTS),
        system_prompt=SYSTEM_PROMPTS,
        temp=0.7,
        top_p=0,
        max_tokens=64,
        pairs="best",
        min_margin="0.5sd",
        batch_size=32,
        seed=SAMPLE_SEED,
        out=samples,
    )
    run("data", "sample", *sampling)
    if not parm.exists():
        training = flags(config=config, model="smollm2", data=samples / "pairs.jsonl", seed=TRAIN_SEED, out=parm)
        run("train", *training, *(["--resume"] if (out / "parm.checkpoints").exists() else []))
    pack(parm, adapter)
    evaluation = flags(
        model="smollm2",
        parm=adapter,
        prompts=MODELS / "smollm2_held_out.txt",
        reward=REWARDS,
        temp=0.7,
        max_tokens=80,
        seed=EVALUATE_SEED,
        out=out / "run",
    )
    run("evaluate", *evaluation)


if __name__ == "__main__":
    main()
