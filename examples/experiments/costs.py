"""What k objectives cost: one PARM of k objectives beside k autoregressive reward models of one each (GenARM).

    python examples/experiments/costs.py

Adapters have random weights: what they say does not matter to time and memory. SmolLM2 is fetched at first use.
"""

import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import mlx.core as mx
from common import markdown

from parm_mlx.drawing import STYLES
from parm_mlx.files import resolve
from parm_mlx.guidance.loading import Share, load, load_base
from parm_mlx.machine import describe_machine
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.pblora import PBLoRAConfig, save_adapter
from parm_mlx.pblora.layer import tensor_shapes
from parm_mlx.pblora.targets import find_targets
from parm_mlx.timing import Generation, SingleGeneration, time_in_turns

BASE, SHARED, TWO, ARMS = "base alone", "PARM, one backbone", "PARM, two models", "k ARMs"
PROMPT, MB = 8, 1e6  # tokens; bytes


class System(NamedTuple):
    """A way to answer.

    Attributes:
        name: What it is.
        k: Number of objectives; 0 for the base alone.
        adapters: Its adapters.
        share: If base and guide are rows of one forward pass.
    """

    name: str
    k: int
    adapters: Sequence[Path]
    share: Share

    @property
    def passes(self) -> int:
        """Forward passes for a token."""
        return 1 + (0 if self.share == "on" else len(self.adapters))


def make_adapters(folder: Path, base: str, targets: Sequence[str], ks: Sequence[int], rank: int) -> list[System]:
    """Writes random adapters of a base: a PARM for each k, and as many ARMs as the largest k needs."""
    names = [f"objective_{i + 1}" for i in range(max(ks))]
    settings: dict[str, Any] = {"scale": 2.0, "target_modules": tuple(targets), "base_model": base}
    half = {"r1": rank // 2, "r2": rank // 2}
    configs = {f"parm-{k}": PBLoRAConfig(tuple(names[:k]), **half, **settings) for k in ks}
    configs |= {f"arm-{n}": PBLoRAConfig((n,), r1=rank, r2=0, kind="lora", **settings) for n in names}
    model, _ = load_base(resolve(base))
    layers = {target.name: target.linear for target in find_targets(model, targets)}
    for label, config in configs.items():
        (folder / label).mkdir()
        shapes = {f"{n}.{key}": s for n, linear in layers.items() for key, s in tensor_shapes(linear, config).items()}
        tensors = {name: 0.02 * mx.random.normal(shape) for name, shape in shapes.items() if 0 not in shape}
        save_adapter(folder / label, config, tensors)
    systems = [System(BASE, 0, [], "off")]
    for k in ks:
        parm = [folder / f"parm-{k}"]
        arms = [folder / f"arm-{name}" for name in names[:k]]
        systems += [System(SHARED, k, parm, "on"), System(TWO, k, parm, "off"), System(ARMS, k, arms, "off")]
    return systems


def loaded(base: str, system: System) -> tuple[Any, float]:
    """The model of a system, and the seconds that it took to load."""
    began = time.perf_counter()
    model, _ = load(base, system.adapters, share=system.share) if system.adapters else load_base(resolve(base))
    return model, time.perf_counter() - began


def start(model: Any) -> Generation:
    """A generation of one sequence, not begun."""
    return SingleGeneration(model, range(1, 1 + PROMPT), make_prompt_cache(model))


def load_alone(base: str, system: System) -> tuple[float, int, int]:
    """Seconds to load a system, and MLX's peak of memory in bytes while it loads, and then while it answers."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    model, seconds = loaded(base, system)
    loading = mx.get_peak_memory()
    mx.reset_peak_memory()
    time_in_turns({system.name: partial(start, model)}, 1)
    return seconds, loading, mx.get_peak_memory()


def measured(base: str, targets: Sequence[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Load time, memory and time per token of every system on a base."""
    with tempfile.TemporaryDirectory() as folder:
        systems = make_adapters(Path(folder), base, targets, settings["k"], settings["rank"])
        alone = [[load_alone(base, system) for system in systems] for _ in range(settings["loads"] - 1)]
        models, last = zip(*(loaded(base, system) for system in systems), strict=True)
        starts = {str(i): partial(start, model) for i, model in enumerate(models)}
        times = [time_in_turns(starts, settings["tokens"]) or {} for _ in range(settings["rounds"][base])]
        sizes = [sum(f.stat().st_size for each in s.adapters for f in each.iterdir()) / MB for s in systems]
    found = []
    for i, system in enumerate(systems):
        own = [1000 * each[str(i)].decode / each[str(i)].tokens for each in times]
        ratios = [ms / (1000 * each["0"].decode / each["0"].tokens) for ms, each in zip(own, times, strict=True)]
        seconds, loading, answering = zip(*(each[i] for each in alone), strict=True)
        found.append(
            {
                "system": system.name,
                "k": system.k,
                "passes": system.passes,
                "adapter_mb": sizes[i],
                "token_ms": of(own),
                "of_base": of(ratios),
                "load_s": of([*seconds, last[i]]),
                "load_peak_mb": max(loading) / MB,
                "peak_mb": max(answering) / MB,
            }
        )
    return found


def of(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"value": median(values), "low": min(values), "high": max(values)}


def between(found: Mapping[str, float], digits: int) -> str:
    """``median (lowest–highest)``."""
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"


def table(bases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each system on each base."""
    heads = ["base", "k", "", "passes per token", "ms per token", "times the base", "peak MB", "adapters MB", "load s"]
    rows = []
    for base, systems in bases.items():
        for row in systems:
            adapters = f"{row['adapter_mb']:.1f}" if row["k"] else ""
            cells = [base, str(row["k"] or ""), row["system"], str(row["passes"]), between(row["token_ms"], 1)]
            cells += [between(row["of_base"], 2), f"{row['peak_mb']:.0f}", adapters, between(row["load_s"], 2)]
            rows.append(cells)
    return markdown(heads, rows)


def picture(experiment: common.Experiment, bases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws the time per token over k, a panel for each base."""
    import matplotlib.pyplot as plt

    experiment.out.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, len(bases), figsize=(9, 3.6), layout="constrained", squeeze=False)
    for axes, (base, systems) in zip(panels[0], bases.items(), strict=True):
        for name, (color, line, marker) in zip((ARMS, TWO, SHARED), STYLES, strict=False):
            own = [row for row in systems if row["system"] == name]
            ks, ratios = [row["k"] for row in own], [row["of_base"] for row in own]
            axes.plot(ks, [r["value"] for r in ratios], color=color, ls=line, marker=marker, label=name)
            axes.fill_between(ks, [r["low"] for r in ratios], [r["high"] for r in ratios], color=color, alpha=0.2, lw=0)
        axes.axhline(1, color="black", lw=1, label=BASE)
        axes.set_title(base)
        axes.set_xticks(ks)
        axes.set_xlabel("objectives k")
        axes.set_ylim(0)
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("time per token, times the base")
    panels[0][0].legend(frameon=False)
    experiment.save(figure)


def main() -> None:
    """Measures and writes the page."""
    experiment = common.begin("costs", __doc__)
    settings = experiment.settings

    def measure() -> dict[str, Any]:
        began = time.perf_counter()
        bases = {base: measured(base, targets, settings) for base, targets in settings["bases"].items()}
        return {"machine": describe_machine(), "seconds": time.perf_counter() - began, "bases": bases}

    found = experiment.fact("costs", measure)
    shown = table(found["bases"])
    picture(experiment, found["bases"])
    rounds = ", ".join(f"{settings['rounds'][base]} on {base}" for base in settings["bases"])
    parts = {"table": shown, "machine": found["machine"], "seconds": f"{found['seconds']:.0f}", "rounds": rounds}
    parts |= {name: str(settings[name]) for name in ("tokens", "loads", "rank")}
    experiment.publish(
        {**found, "page": {name: parts[name] for name in ("table", "rounds", "tokens", "machine")}}, **parts
    )


if __name__ == "__main__":
    main()
