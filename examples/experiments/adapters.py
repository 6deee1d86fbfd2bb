"""PBLoRA against plain LoRA, SVD-LoRA, MoSLoRA and GenARM, with equally many trainable numbers.

    python examples/experiments/adapters.py

GenARM is two plain LoRA models of half the rank, each trained on one objective for half of the steps, that guide
together. LoRA without conditioning cannot follow α; it is the floor of the comparison.
"""

from pathlib import Path
from typing import Any

import common
from comparison import OBJECTIVES, publish, sweep_all

SYSTEMS = ("PBLoRA", "LoRA", "SVD-LoRA", "MoSLoRA", "GenARM")
MOSLORA = (
    " MoSLoRA shares all of A and B between the preferences, and α changes a mixer between them affinely; it stands "
    "for UniARM, without its embeddings of what the objectives mean."
)


def parms(experiment: common.Experiment, system: str, seed: int) -> list[Path]:
    """The adapters of a system, trained unless they are there."""
    if system != "GenARM":
        return [experiment.adapter(system.lower(), seed, adapter=system.lower())]
    return experts(experiment, seed)


def experts(experiment: common.Experiment, seed: int) -> list[Path]:
    """An adapter for each objective, together of the size of one PBLoRA adapter and trained for as many steps."""
    train = experiment.settings["train"]
    half = {"iters": train["iters"] // 2, "warmup": train["warmup"] // 2}
    small: dict[str, Any] = {"adapter": "lora", "r1": 2, "r2": 2, "lora_alpha": 4.0}
    return [experiment.adapter(f"genarm-{name}", seed, objectives=(name,), **small, **half) for name in OBJECTIVES]


def main() -> None:
    """Trains, sweeps, compares and writes the page."""
    experiment = common.begin("adapters", __doc__)
    if measured := sweep_all(experiment, SYSTEMS, parms):
        publish(experiment, *measured, moslora=MOSLORA)


if __name__ == "__main__":
    main()
