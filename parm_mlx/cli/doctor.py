"""``parm-mlx doctor``: the health of this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from parm_mlx.cli import console

if TYPE_CHECKING:
    from parm_mlx.diagnostics.findings import Finding

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object to paste into a bug report; the home folder is ~ in it."),
    ] = False,
) -> None:
    """Examine this machine: versions, device, memory, BLAS, kernels, and a guided generation on the bundled model.

    Kernels are checked where there is Metal, each against the plain operations that define it; from then on those that
    pass are used. Takes less than a minute. Exit code 1 says that something is wrong; what is merely slow is a warning.

    \b
    Examples:
      parm-mlx doctor
      parm-mlx doctor --json
    """
    from parm_mlx.diagnostics.doctor import examinations, examine_all

    findings = []
    for found in console.progress(examine_all(), len(examinations()), "checks"):
        findings += found
        if not as_json:
            for finding in found:
                _show(finding)
    failed = any(finding.status == "failed" for finding in findings)
    if as_json:
        record = {"ok": not failed, "checks": [finding.to_dict() for finding in findings]}
        console.record(record)
    if failed:
        raise typer.Exit(1)


def _show(finding: "Finding") -> None:
    console.stdout().print(f"{finding.status:<9}", style=STYLES[finding.status], end="")
    console.stdout().print(f"{finding.name:<15} {finding.found}")
    if finding.hint:
        console.stdout().print(f"{'':<25}hint: {finding.hint}")
