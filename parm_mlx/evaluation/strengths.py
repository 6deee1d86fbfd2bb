"""A sweep over β: a run at each strength of the guide, and their comparison on one scale."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.answers.store import RUN_FILE
from parm_mlx.distributed import join
from parm_mlx.errors import InputError, OutputError
from parm_mlx.evaluation.evaluate import compare_runs, evaluate
from parm_mlx.evaluation.even import EVEN
from parm_mlx.files import expanded
from parm_mlx.outputs import check_claim, check_new

COMPARISON = "comparison"


def evaluate_strengths(
    betas: Sequence[float],
    *,
    out: str | Path,
    note: Callable[[str], None] = lambda message: None,
    **settings: Any,
) -> dict[str, Any] | None:
    """Evaluates one adapter at several β, smaller is stronger, each in a folder of ``out`` of its own.

    Other arguments are those of :func:`parm_mlx.evaluation.evaluate.evaluate`; as there, the same call goes on.

    Returns:
        The content of the comparison's ``metrics.json``; None in all processes but the main one.

    Raises:
        InputError: A β occurs twice; or as for an evaluation.
        OutputError: The folder holds a run at one β.
    """
    if len({f"{beta:.12g}" for beta in betas}) < len(betas):
        raise InputError("a β is given twice")
    folder = expanded(out)
    if (folder / RUN_FILE).exists():
        raise OutputError(f"{folder} holds a run at one β", hint="choose another --out")
    runs = [folder / f"beta-{beta:.12g}" for beta in betas]
    for run in runs:
        check_claim(run, "run")
    check_new(folder / COMPARISON, force=True)
    done = None
    for beta, run in zip(betas, runs, strict=True):
        if join().main:
            note(f"beta {beta:g}")
        done = evaluate(out=run, beta=beta, note=note, **settings)
    if done is None:
        return None
    scale = {name: settings[name] for name in ("normalize", "reference", "bootstrap") if name in settings}
    summary = compare_runs(runs, folder / COMPARISON, force=True, note=note, **scale)
    if settings.get("grid") != EVEN:  # whose preferences differ from β to β
        best = max(zip(betas, summary["runs"], strict=True), key=lambda each: each[1]["mip_gain"]["value"])
        note(
            f"alpha does most at beta {best[0]:g}, by the gain of the MIP; read the answers there before you choose it"
        )
    return summary
