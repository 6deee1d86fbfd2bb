"""Makes the PARM of SmolLM2-135M-Instruct: cheer against formality.

    python examples/smollm2/make_parm.py --out work

Three commands, each of which goes on where it was interrupted: `data sample` (the base answers 640 training questions
under three system prompts), `train`, and `evaluate` (150 held-out questions about other topics). The seeds and the
questions were fixed before any training. checks.py then compares the answers with the base's.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLE_SEED, TRAIN_SEED, EVALUATE_SEED = 0, 0, 1000
CHEERFUL = "You are a warm, cheerful and encouraging friend who loves to help. Be positive."
FORMAL = "Answer factually and formally, like an encyclopedia, without any friendly words."
REWARDS = ("--reward", "cheer=cheer", "--reward", "formality=formality")


def commands(model: str, out: Path, num_samples: int, max_tokens: int) -> list[list[str]]:
    """Returns the commands in their order."""
    samples, parm, run = out / "samples", out / "parm", out / "run"
    sample = ["data", "sample", "--model", model, "--prompts", str(HERE / "train_prompts.txt"), *REWARDS]
    sample += ["--num-samples", str(num_samples), "--system-prompt", "none", "--system-prompt", CHEERFUL]
    sample += ["--system-prompt", FORMAL, "--temp", "0.7", "--top-p", "0", "--max-tokens", "64"]
    sample += ["--pairs", "conflict", "--batch-size", "32", "--seed", str(SAMPLE_SEED), "--out", str(samples)]
    train = ["train", "--config", str(HERE / "train.yaml"), "--model", model, "--data", str(samples / "pairs.jsonl")]
    train += ["--seed", str(TRAIN_SEED), "--out", str(parm)]
    if (out / "parm.checkpoints").exists():
        train.append("--resume")
    evaluate = ["evaluate", "--model", model, "--parm", str(parm), "--prompts", str(HERE / "held_out_prompts.txt")]
    evaluate += [*REWARDS, "--temp", "0.7", "--seed", str(EVALUATE_SEED), "--max-tokens", str(max_tokens)]
    evaluate += ["--out", str(run)]
    return [sample, *([] if parm.exists() else [train]), evaluate]


def main() -> None:
    """Runs the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="the base (default: smollm2)")
    parser.add_argument("--out", type=Path, required=True, help="folder of answers, adapter and run")
    parser.add_argument("--num-samples", type=int, default=3, help="answers to each training question (default: 3)")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest held-out answer (default: 96)")
    options = parser.parse_args()
    for command in commands(options.model, options.out, options.num_samples, options.max_tokens):
        print("parm-mlx", shlex.join(command), flush=True)
        subprocess.run([sys.executable, "-m", "parm_mlx.cli.main", *command], check=True)


if __name__ == "__main__":
    main()
