"""``parm-mlx train``: preference data → a PARM adapter."""

from pathlib import Path
from typing import Annotated, Any

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import UploadRepo, flag, grouped
from parm_mlx.hub import check_upload, upload
from parm_mlx.training.config import TrainConfig

MOVED = 0.05  # nats per token between the corners, below which answers hardly differ


@grouped
def train(
    given: Annotated[dict[str, Any], TrainConfig],
    config: Annotated[Path | None, flag("YAML file with any of these settings; flags override it.")] = None,
    resume: Annotated[
        bool, flag("Continue from the newest checkpoint, with the same settings, data and models.")
    ] = False,
    resume_anyway: Annotated[
        bool, flag("Continue also where data or models have changed; the adapter records it.")
    ] = False,
    force: Annotated[bool, flag("Replace an adapter that exists at --out, and checkpoints of an earlier run.")] = False,
    upload_repo: UploadRepo = None,
) -> None:
    """Train a PARM adapter on preference data.

    A row of the data is one JSON object on a line; "prompt" is a text or a list of messages.

    \b
      {"prompt": "…", "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
      {"prompt": "…", "chosen": "…", "rejected": "…", "objective": "helpful"}

    Rows of HH-RLHF and of PKU-SafeRLHF are read as they are; `parm-mlx data inspect` shows what is in the data.

    While training, checkpoints are written to OUT.checkpoints; each can be used as an adapter. After Ctrl-C, a kill or
    a full disk, the same command with --resume goes on as if nothing had happened. Ctrl-C and SIGTERM finish the step
    in progress and save first. The finished adapter takes the place of the checkpoints; only the best by validation
    stays, when it is not the result. Where data, the backbone or the adapter of --start-from have changed, --resume is
    refused and names what has; --resume-anyway goes on.

    \b
    Examples:
      parm-mlx train --model base --data pairs.jsonl --out my-parm --iters 200
      parm-mlx train --model base --data pairs/ --out my-parm --objectives harmless,helpful
      parm-mlx train --model base --data pairs.jsonl --out my-parm --iters 200 --resume
      parm-mlx train --model base --data three.jsonl --out wider --start-from my-parm --iters 100
      parm-mlx train --model owner/base --data pairs.jsonl --out my-parm --upload-repo me/my-parm
      parm-mlx train --config train.yaml --learning-rate 1e-4 --out second-try
    """
    settings = TrainConfig.from_sources(config, given)
    check_upload(upload_repo)
    console.blas_hint()
    from parm_mlx.training.progress import ConsoleProgress
    from parm_mlx.training.run import train as run

    progress = ConsoleProgress(console.stderr())
    result = run(settings, force=force, resume=resume, resume_anyway=resume_anyway, progress=progress)
    if result.rank:
        raise typer.Exit(128 + result.signal if result.signal else 0)
    console.echo(result.out)
    if result.signal is not None:
        console.note(
            f"stopped at step {result.steps}; the same command with --resume finishes the run\n"
            f"{result.out} holds what has been learned; try it: parm-mlx chat --parm {result.out}"
        )
        raise typer.Exit(128 + result.signal)
    if upload_repo is not None:
        console.note(f"uploaded: {upload(result.out, upload_repo)}")
    done, apart = f"{result.steps} steps done", result.distance
    if apart is None or apart >= MOVED:
        if apart is not None:
            done += f"; alpha moves the adapter: its corners are {apart:.2f} nats per token apart"
        console.note(f"{done}\ntry it: {console.program()} chat --parm {result.out}")
        return
    progress.warn(f"alpha hardly moves the adapter: its corners are {apart:.3f} nats per token apart, below {MOVED}")
    console.note(
        f"{done}; train longer (--iters, --epochs) or with a higher --learning-rate. If corners stay together, do the "
        "objectives disagree? parm-mlx data inspect tells"
    )
