"""``parm-mlx doctor``: the health of this machine."""

import json
from typing import Annotated

import typer

from parm_mlx.cli import console

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object to paste into a bug report; the home folder is ~ in it."),
    ] = False,
) -> None:
    """Examine this machine: versions, device, memory, BLAS, kernels, and a guided generation on the bundled model.

    Takes less than a minute. Exit code 1 says that something is wrong; what is merely slow is a warning.

    \b
    Examples:
      parm-mlx doctor
      parm-mlx doctor --json
    """
    from parm_mlx.diagnostics.doctor import examinations, examine_all

    findings = []
    for finding in console.progress(examine_all(), len(examinations()), "checks"):
        findings.append(finding)
        if not as_json:
            console.stdout().print(f"{finding.status:<9}", style=STYLES[finding.status], end="")
            console.stdout().print(f"{finding.name:<10} {finding.found}")
            if finding.hint:
                console.stdout().print(f"{'':<20}hint: {finding.hint}")
    failed = any(finding.status == "failed" for finding in findings)
    if as_json:
        record = {"ok": not failed, "checks": [finding.to_dict() for finding in findings]}
        typer.echo(json.dumps(record, ensure_ascii=False))
    if failed:
        raise typer.Exit(1)
