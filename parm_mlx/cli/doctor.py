"""``parm-mlx doctor``: the health of this machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import flag, grouped
from parm_mlx.cli.session import sharded
from parm_mlx.errors import InputError
from parm_mlx.settings import PATH

if TYPE_CHECKING:
    from parm_mlx.diagnostics.doctor import Check

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@grouped
def doctor(
    as_json: Annotated[
        bool, flag("One JSON object to paste into a bug report; the home folder is ~ in it.", name="--json")
    ] = False,
    shard: Annotated[
        Literal["tensor", "pipeline", "apart"] | None,
        flag(
            "Check instead that the processes which mlx.launch has started give the tokens of one; they divide the "
            "models so.",
            default_text="not checked",
        ),
    ] = None,
    model: Annotated[str | None, flag("With --shard, the base to check with.", PATH, default_text="bundled")] = None,
    parm: Annotated[str | None, flag("With --shard, its adapter.", PATH, default_text="that of the model")] = None,
) -> None:
    """Examine this machine: versions, device, memory, BLAS, kernels, and a guided generation on the bundled model.

    Kernels are checked where there is a GPU, each against the plain operations that define it; from then on those that
    pass are used. Takes less than a minute, and a minute or two with CUDA, where every kernel is compiled first. Exit
    code 1 says that something is wrong; what is merely slow is a warning.

    \b
    Examples:
      parm-mlx doctor
      parm-mlx doctor --json
      mlx.launch -n 2 -- parm-mlx doctor --shard tensor
    """
    if shard is None and (model or parm):
        raise InputError("--model and --parm go with --shard: the other checks have models of their own")
    from parm_mlx.diagnostics.doctor import checks, run_checks

    with sharded(shard) as processes:
        if processes is None:
            _report(run_checks(), len(checks()), as_json)
        else:
            from parm_mlx.diagnostics.shard import check_shard

            _report(iter([check_shard(processes, model, parm)]), 1, as_json)


def _report(found: "Iterator[list[Check]]", count: int, as_json: bool) -> None:
    """Prints checks as they end; exits with 1 if one has failed."""
    done = []
    for several in console.waiting(found, count, "checks"):
        done += several
        for check in [] if as_json else several:
            console.stdout().print(f"{check.status:<9}", style=STYLES[check.status], end="")
            console.stdout().print(f"{check.name:<15} {check.found}")
            if check.hint:
                console.stdout().print(f"{'':<25}hint: {check.hint}")
    failed = any(check.status == "failed" for check in done)
    if as_json:
        console.record({"ok": not failed, "checks": [check.to_dict() for check in done]})
    if failed:
        raise typer.Exit(1)
