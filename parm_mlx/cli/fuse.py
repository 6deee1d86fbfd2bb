"""``parm-mlx fuse``: a PARM at one preference as a plain MLX model."""

from pathlib import Path
from typing import Annotated

import typer

from parm_mlx.cli import console, options
from parm_mlx.files import resolve
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.preference import format_alpha, parse_alpha


def fuse(
    parm: Annotated[str, typer.Option("--parm", help="PARM adapter: directory or hub id.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    alpha: Annotated[str, typer.Option("--alpha", help='The preference to fix: "0.7,0.3" or by name.')],
    guide_model: options.GuideModel = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="Allow a quantised backbone; the adapted layers become plain ones."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model in --out.")] = False,
) -> None:
    """Fix a PARM at one preference and write it as a plain MLX model.

    The result is the reward model alone, no longer steerable; any mlx-lm tool loads it. Quantising fused weights again
    would swallow small updates, so a quantised backbone needs --dequantize.

    \b
    Example:
      parm-mlx fuse --parm parm --alpha helpful=1 --out parm-helpful
    """
    check_new(out, force, [parm, guide_model])
    console.blas_hint()
    from parm_mlx.guidance.loading import load_guide, recorded_backbone
    from parm_mlx.mlxlm import save_like
    from parm_mlx.pblora.transform import fuse_model

    guide, _ = load_guide(parm, guide_model)
    weights = parse_alpha(alpha, guide.objectives)
    fuse_model(guide.model, weights, dequantize)
    backbone = resolve(guide_model, "guide model") if guide_model else recorded_backbone(parm)
    with new_directory(out, force, [resolve(parm, "adapter"), backbone]) as partial:
        save_like(partial, guide.model, backbone)
    console.note(f"{out}: {parm} at {format_alpha(weights, guide.objectives)}")
    console.echo(out)
