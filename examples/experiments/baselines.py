"""The baselines of the paper: rewarded soups and MOD, alone and beside the base, against one PARM.

    python examples/experiments/baselines.py

All are made of the same adapters of one objective each, those of GenARM in adapters.py. A soup interpolates their
weights by α, MOD mixes their log-probabilities. Alone, what comes out answers by itself, as in the papers of these
methods; beside the base it guides, as a PARM does: MOD beside the base is MOD-w2s where the base is the larger model,
and it is GenARM. A PARM can answer alone, too, where it is as large as its base, as here.
"""

from pathlib import Path

import common
from adapters import experts
from adapters import parms as adapters_of
from comparison import publish, sweep_all

from parm_mlx.outputs import new_directory
from parm_mlx.pblora import read_adapter, save_adapter, soup

SOUP, GUIDING_SOUP = "rewarded soup", "rewarded soup beside the base"
MOD, GUIDING_MOD = "MOD", "MOD beside the base"
PARM, PARM_ALONE = "PARM beside the base", "PARM"
SYSTEMS = (PARM, PARM_ALONE, SOUP, GUIDING_SOUP, MOD, GUIDING_MOD)
ALONE = (PARM_ALONE, SOUP, MOD)
# The same sweeps as in adapters.py, where they are the same systems.
LABELS = {PARM: "pblora", PARM_ALONE: "alone", SOUP: "soup", GUIDING_SOUP: "guiding-soup"}
LABELS |= {MOD: "mod", GUIDING_MOD: "genarm"}


def mixed(experiment: common.Experiment, seed: int) -> Path:
    """The soup of the adapters of one objective each."""
    out, several = experiment.work / "adapters" / f"soup-{seed}", experts(experiment, seed)

    def make() -> None:
        adapters = [read_adapter(parm) for parm in several]
        config, tensors = soup(adapters)
        config.training["mixed_of"] = sum(tensor.size for _, own in adapters for tensor in own.values())
        with new_directory(out) as partial:
            save_adapter(partial, config, tensors)

    return experiment.made(out, make)


def parms(experiment: common.Experiment, system: str, seed: int) -> list[Path]:
    """The adapters of a system, trained and mixed unless they are there."""
    if system in (PARM, PARM_ALONE):
        return adapters_of(experiment, "PBLoRA", seed)
    return [mixed(experiment, seed)] if system in (SOUP, GUIDING_SOUP) else experts(experiment, seed)


def main() -> None:
    """Trains, mixes, sweeps, compares and writes the page."""
    experiment = common.begin("baselines", __doc__)
    if measured := sweep_all(experiment, SYSTEMS, parms, ALONE, LABELS):
        publish(experiment, *measured)


if __name__ == "__main__":
    main()
