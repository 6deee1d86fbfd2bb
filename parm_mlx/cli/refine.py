"""``parm-mlx refine``: an adapter whose one-pass guidance is nearer to exact guidance."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from parm_mlx.cli import console
from parm_mlx.cli.options import GuideOptions, MaxTokens, declared, flag, grouped
from parm_mlx.errors import InputError
from parm_mlx.files import resolve
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.ranges import COUNT
from parm_mlx.settings import PATH, SamplingSettings


@grouped
def refine(
    parm: Annotated[str, flag("PARM adapter: smollm2, bundled, a directory or a hub id.", PATH)],
    prompts: Annotated[
        Path,
        flag('File of prompts: .txt, one per line, or .jsonl, .json or .csv with "prompt". A few dozen are enough.'),
    ],
    out: Annotated[Path, flag("Directory of the refined adapter.")],
    limit: Annotated[int | None, flag("Take the first so many prompts.", COUNT, default_text="all")] = None,
    max_tokens: MaxTokens = 32,
    guide_model: Annotated[str | None, declared(GuideOptions, "guide_model")] = None,
    seed: Annotated[int, declared(SamplingSettings, "seed")] = 0,
    force: Annotated[bool, flag("Replace an existing adapter in --out.")] = False,
) -> None:
    """Bring one-pass guidance nearer to exact guidance, with a number fitted for each adapted layer.

    The backbone answers the prompts under exact guidance, at random α and β. On half of the answers the numbers are
    fitted; on the others the distance from exact guidance is measured before and after. They stand in the adapter's
    settings and change nothing but --guidance one-pass and fuse --guided.

    \b
    Example:
      parm-mlx refine --parm my-parm --prompts questions.txt --limit 48 --out my-parm-refined
    """
    check_new(out, force, [parm, guide_model])
    console.blas_hint()
    from parm_mlx.data.prompts import read_prompts
    from parm_mlx.evaluation.refinement import refine as fit
    from parm_mlx.guidance.loading import load_guide
    from parm_mlx.pblora.adapter import adapter_tensors, backbone_reference, find_backbone, save_adapter

    asked = read_prompts(prompts)[:limit]
    if len(asked) < 2:
        raise InputError("--prompts holds fewer than two prompts: half of them measure what the others are worth")
    guide, tokenizer = load_guide(parm, guide_model)
    found = fit(guide, tokenizer, [prompt.content for prompt in asked], max_tokens, seed, console.note)
    adapter = resolve(parm, "adapter")
    backbone = guide_model or find_backbone(adapter, guide.config)
    reference = None if backbone is None else backbone_reference(str(backbone), out)
    config = replace(guide.config, one_pass=found.factors, base_model=reference)
    with new_directory(out, force, [adapter]) as partial:
        save_adapter(partial, config, adapter_tensors(guide.model))
    console.echo(out)
    for beta, (variation, same) in found.before.items():
        now, now_same = found.after[beta]
        console.note(
            f"beta {beta:g}: total variation {variation:.4f}, now {now:.4f}; "
            f"the same likeliest token {same:.1%}, now {now_same:.1%}"
        )
    if sum(now for now, _ in found.after.values()) >= sum(before for before, _ in found.before.values()):
        console.note("warning: the refined adapter is not nearer; more prompts or a larger --max-tokens may help")
