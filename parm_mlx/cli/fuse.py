"""``parm-mlx fuse``: a PARM at one preference as a plain MLX model."""

from pathlib import Path
from typing import Annotated

from parm_mlx.cli import console
from parm_mlx.cli.options import GuideOptions, declared, flag, grouped
from parm_mlx.files import resolve
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.preference import format_alpha, parse_alpha
from parm_mlx.settings import PATH


@grouped
def fuse(
    parm: Annotated[str, flag("PARM adapter: directory or hub id.", PATH)],
    out: Annotated[Path, flag("Directory to write.")],
    alpha: Annotated[str, flag('The preference to fix: "0.7,0.3" or by name.')],
    guide_model: Annotated[str | None, declared(GuideOptions, "guide_model")] = None,
    dequantize: Annotated[bool, flag("Allow a quantised backbone; the adapted layers become plain ones.")] = False,
    force: Annotated[bool, flag("Replace an existing model in --out.")] = False,
) -> None:
    """Fix a PARM at one preference and write it as a plain MLX model.

    The result is the reward model alone, no longer steerable; any mlx-lm tool loads it. Quantising fused weights again
    would round small updates away, so a quantised backbone needs --dequantize.

    \b
    Example:
      parm-mlx fuse --parm parm --alpha helpful=1 --out parm-helpful
    """
    check_new(out, force, [parm, guide_model])
    console.blas_hint()
    from parm_mlx.guidance.loading import load_guide, recorded_backbone
    from parm_mlx.mlxlm import save_like
    from parm_mlx.pblora.transform import fuse_model

    guide, _ = load_guide(parm, guide_model, dequantize="off")  # the result keeps the bits of other layers
    weights = parse_alpha(alpha, guide.objectives)
    fuse_model(guide.model, weights, dequantize)
    backbone = resolve(guide_model, "guide model") if guide_model else recorded_backbone(parm)
    with new_directory(out, force, [resolve(parm, "adapter"), backbone]) as partial:
        save_like(partial, guide.model, backbone)
    console.note(f"{out}: {parm} at {format_alpha(weights, guide.objectives)}")
    console.echo(out)
