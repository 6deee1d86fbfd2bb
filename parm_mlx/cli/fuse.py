"""``parm-mlx fuse``: a PARM at one preference, alone or with its base, as a plain MLX model."""

from pathlib import Path
from typing import Annotated

from parm_mlx.cli import console
from parm_mlx.cli.options import GuideOptions, declared, flag, grouped
from parm_mlx.errors import InputError
from parm_mlx.files import resolve
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.preference import format_alpha, parse_alpha
from parm_mlx.ranges import BETA
from parm_mlx.settings import PATH


@grouped
def fuse(
    parm: Annotated[str, flag("PARM adapter: directory or hub id.", PATH)],
    out: Annotated[Path, flag("Directory to write.")],
    alpha: Annotated[str, flag('The preference to fix: "0.7,0.3" or by name.')],
    guided: Annotated[
        bool, flag("Write the base guided by the PARM, in place of the PARM alone; both have the same weights.")
    ] = False,
    beta: Annotated[
        float | None,
        flag(
            "With --guided, β; smaller means a stronger guide.", BETA, default_text="what the adapter proposes, else 1"
        ),
    ] = None,
    guide_model: Annotated[str | None, declared(GuideOptions, "guide_model")] = None,
    dequantize: Annotated[bool, flag("Allow a quantised backbone; the adapted layers become plain ones.")] = False,
    force: Annotated[bool, flag("Replace an existing model in --out.")] = False,
) -> None:
    """Fix a PARM at one preference and write it as a plain MLX model.

    The result is the reward model alone or, with --guided, guided answers in one pass (the approximation of --guidance
    one-pass), no longer steerable; any mlx-lm tool runs it at full speed. Quantising fused weights again would round
    small updates away, so a quantised backbone needs --dequantize; parm-mlx convert -q can quantise the result, at that
    price.

    \b
    Examples:
      parm-mlx fuse --parm parm --alpha helpful=1 --out parm-helpful
      parm-mlx fuse --parm parm --alpha helpful=0.8,harmless=0.2 --guided --beta 0.5 --out guided
    """
    if beta is not None and not guided:
        raise InputError("--beta needs --guided: a PARM alone has no strength")
    check_new(out, force, [parm, guide_model])
    console.blas_hint()
    from parm_mlx.guidance.loading import load_guide
    from parm_mlx.guidance.named import proposed_betas, recorded_backbone
    from parm_mlx.guidance.one_pass import fuse_guided
    from parm_mlx.mlxlm import save_like
    from parm_mlx.pblora.transform import fuse_model

    guide, _ = load_guide(parm, guide_model, dequantize="off")  # the result keeps the bits of other layers
    weights = parse_alpha(alpha, guide.objectives)
    strength = ""
    if guided:
        beta = beta or proposed_betas([parm])[0]
        fuse_guided(guide, weights, beta, dequantize)
        strength = f", with its base, beta {beta:g}"
    else:
        fuse_model(guide.model, weights, dequantize)
    backbone = resolve(guide_model, "guide model") if guide_model else recorded_backbone(parm)
    with new_directory(out, force, [resolve(parm, "adapter"), backbone]) as partial:
        save_like(partial, guide.model, backbone)
    console.note(f"{out}: {parm} at {format_alpha(weights, guide.objectives)}{strength}")
    console.note(f"next: mlx_lm.chat --model {out}")
    console.echo(out)
