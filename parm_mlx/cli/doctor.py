"""``parm-mlx doctor``: the health of this machine."""

from typing import Annotated

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import flag, grouped

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@grouped
def doctor(
    as_json: Annotated[
        bool, flag("One JSON object to paste into a bug report; the home folder is ~ in it.", name="--json")
    ] = False,
) -> None:
    """Examine this machine: versions, device, memory, BLAS, kernels, and a guided generation on the bundled model.

    Kernels are checked where there is a GPU, each against the plain operations that define it; from then on those that
    pass are used. Takes less than a minute, and a minute or two with CUDA, where every kernel is compiled first. Exit
    code 1 says that something is wrong; what is merely slow is a warning.

    \b
    Examples:
      parm-mlx doctor
      parm-mlx doctor --json
    """
    from parm_mlx.diagnostics.doctor import checks, run_checks

    done = []
    for found in console.waiting(run_checks(), len(checks()), "checks"):
        done += found
        for check in [] if as_json else found:
            console.stdout().print(f"{check.status:<9}", style=STYLES[check.status], end="")
            console.stdout().print(f"{check.name:<15} {check.found}")
            if check.hint:
                console.stdout().print(f"{'':<25}hint: {check.hint}")
    failed = any(check.status == "failed" for check in done)
    if as_json:
        console.record({"ok": not failed, "checks": [check.to_dict() for check in done]})
    if failed:
        raise typer.Exit(1)
