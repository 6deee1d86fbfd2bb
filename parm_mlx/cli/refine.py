"""``parm-mlx refine``: trains an adapter until one pass stands for base and guide."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from parm_mlx.cli import console
from parm_mlx.cli.options import GuideOptions, MaxTokens, declared, flag, grouped
from parm_mlx.errors import InputError
from parm_mlx.files import NAMED, resolve
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.ranges import BATCH, COUNT, Real
from parm_mlx.settings import PATH, SamplingSettings

RATE = Real(1e-12, 1)
WEIGHT = Real(0, 1000)


@grouped
def refine(
    parm: Annotated[str, flag("PARM adapter: smollm2, bundled, a directory or a hub id.", PATH)],
    prompts: Annotated[
        Path,
        flag('File of prompts: .txt, one per line, or .jsonl, .json or .csv with "prompt". A few hundred are enough.'),
    ],
    out: Annotated[Path, flag("Directory of the refined adapter.")],
    limit: Annotated[int | None, flag("Take the first so many prompts.", COUNT, default_text="all")] = None,
    max_tokens: MaxTokens = 48,
    iters: Annotated[int, flag("Number of steps.", COUNT)] = 200,
    batch_size: Annotated[int, flag("Answers that are computed together.", BATCH)] = 8,
    learning_rate: Annotated[
        float | None, flag("Highest learning rate.", RATE, default_text="two thirds of that of train")
    ] = None,
    hold: Annotated[
        float, flag("Weight of holding exact guidance where it was; with a lower one, one pass comes nearer.", WEIGHT)
    ] = 0.3,
    guide_model: Annotated[str | None, declared(GuideOptions, "guide_model")] = None,
    seed: Annotated[int, declared(SamplingSettings, "seed")] = 0,
    force: Annotated[bool, flag("Replace an existing adapter in --out.")] = False,
) -> None:
    """Train an adapter further, so that its one-pass guidance is nearer to exact guidance.

    The backbone answers the prompts under exact guidance, at random α and β. On three quarters of the answers the
    adapter learns to give the same in one pass as in two, while its exact guidance is held near where it was. That
    makes its effect smaller, which the others put right, and both are measured on them, before and after. Compare the
    corners with parm-mlx evaluate before you use the result.

    \b
    Example:
      parm-mlx refine --parm my-parm --prompts questions.txt --out my-parm-refined
    """
    check_new(out, force, [parm, guide_model])
    console.blas_hint()
    from parm_mlx.distributed import refuse_several

    refuse_several()
    from parm_mlx.data.prompts import read_prompts
    from parm_mlx.guidance.loading import load_guide
    from parm_mlx.pblora.adapter import adapter_tensors, backbone_reference, find_backbone, save_adapter
    from parm_mlx.training.card import CARD_FILE, card
    from parm_mlx.training.refinement import FEWEST
    from parm_mlx.training.refinement import refine as train_further

    asked = read_prompts(prompts)[:limit]
    if len(asked) < FEWEST:
        raise InputError(f"--prompts holds fewer than {FEWEST} prompts: some are kept back to measure by")
    guide, tokenizer = load_guide(parm, guide_model)
    how: Any = {"iters": iters, "batch_size": batch_size, "learning_rate": learning_rate}
    how |= {"hold": hold, "max_tokens": max_tokens, "seed": seed}
    adapter = resolve(parm, "adapter")
    backbone = guide_model or (parm if parm in NAMED else find_backbone(adapter, guide.config))
    reference = None if backbone is None else backbone_reference(str(backbone), out)
    reads = [adapter, backbone if backbone is None else resolve(backbone)]
    with new_directory(out, force, reads) as partial:
        found = train_further(guide, tokenizer, [prompt.content for prompt in asked], **how, progress=console.note)
        measured = {
            f"{beta:g}": {name: round(value, 5) for name, value in asdict(each).items()} for beta, each in found.items()
        }
        record = how | {"prompts": len(asked), "measured_by_beta": measured}
        training = guide.config.training | {"refinement": record}
        config = replace(guide.config, training=training, base_model=reference)
        save_adapter(partial, config, adapter_tensors(guide.model))
        (partial / CARD_FILE).write_text(card(out.name, config, [], None), encoding="utf-8")
    console.echo(out)
    for beta, distance in found.items():
        console.note(
            f"beta {beta:g}: total variation of one pass {distance.before:.4f}, now {distance.after:.4f} "
            f"(the same likeliest token: {distance.same:.1%}); exact guidance has moved by {distance.moved:.4f}, "
            f"its effect is {distance.kept:.0%} of what it was"
        )
    if sum(each.after for each in found.values()) >= sum(each.before for each in found.values()):
        console.note("warning: the refined adapter is not nearer; more prompts or --iters may help")
