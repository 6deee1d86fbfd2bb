"""The model card of an adapter: what it is, how to use it, and what its training measured."""

from collections.abc import Sequence
from pathlib import Path

from parm_mlx.files import NAMED, is_hub_id
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.training.judge import CornerRecord
from parm_mlx.training.logging import Record, ValidRecord

CARD_FILE = "README.md"


def card(name: str, config: PBLoRAConfig, records: Sequence[Record], distance: float | None) -> str:
    """Returns a card in Markdown.

    Args:
        name: What the adapter is called.
        config: Its settings, with those of the training.
        records: What the training reported.
        distance: How far apart the corners are, in nats per token; None with one objective.
    """
    training, given = config.training, str(config.training.get("model") or config.base_model or "its backbone")
    public = is_hub_id(given) and not Path(given).is_dir()
    backbone = given if public or given in NAMED else Path(given).name
    alpha = ",".join(f"{objective}={1 / config.k:.2g}" for objective in config.objectives)
    base = [f"base_model: {backbone}"] if public else []
    head = ["---", "library_name: parm-mlx", *base, "tags: [parm, pblora, mlx]", "---"]
    lines = [
        *head,
        f"\n# {name}\n",
        f"A preference-aware reward model (PARM, arXiv 2505.06274) for `{backbone}` and larger models of its "
        f"vocabulary. It guides a frozen model while that generates, by weights for {', '.join(config.objectives)} "
        "that are chosen at run time.\n",
        f"```\nparm-mlx chat --parm {name} --alpha {alpha}\n```\n",
        "## Training\n",
        "| | |\n| --- | --- |",
        f"| pairs to train on, to validate on | {training.get('train_pairs')}, {training.get('valid_pairs')} |",
        f"| steps | {training.get('steps_done')} |",
        f"| adapter | {config.kind}, rank {config.r1} + {config.r2}, scale {config.scale:g} |",
    ]
    if rate := training.get("peak_learning_rate") or training.get("settings", {}).get("learning_rate"):
        lines.append(f"| learning rate at its peak | {rate:.2g} |")
    if config.beta is not None:
        lines.append(f"| β proposed for decoding | {config.beta:g} |")
    if distance is not None:
        lines.append(f"| corners of α apart | {distance:.3f} nats per token |")
    validations = [record for record in records if isinstance(record, ValidRecord)]
    if validations:
        lines += [
            "\nOn pairs that it was not trained on, where it prefers the better answer:\n",
            "| step | loss | accuracy weighted by α | " + " | ".join(f"{o} alone" for o in config.objectives) + " |",
            "| --- " * (3 + config.k) + "|",
        ]
        for record in (validations[0], validations[-1])[: len(validations)]:
            own = " | ".join(f"{share:.0%}" for share in record.corner_accuracy.values())
            lines.append(f"| {record.step} | {record.loss:.4f} | {record.weighted_accuracy:.0%} | {own} |")
    if judged := [record for record in records if isinstance(record, CornerRecord)]:
        apart = ", ".join(f"{name} {value:.2f}" for name, value in judged[-1].distance.items())
        lines.append(f"\nScores of generated answers between the corners, in sd of the base's: {apart}.")
    if refinement := training.get("refinement"):
        lines += [
            f"\n## One pass\n\n`parm-mlx refine` trained it for {refinement['iters']} further steps, until one pass "
            f"(`--guidance one-pass`) was nearer to exact guidance. Total variation between the two, on answers to "
            f"prompts that were kept back, of exact guidance from what it was before, and what is kept of the "
            f"adapter's effect on the logits:\n",
            "| β | before | after | exact guidance has moved | effect kept |\n| --- | --- | --- | --- | --- |",
        ]
        for beta, found in refinement["measured_by_beta"].items():
            distances = " | ".join(f"{found[name]:.4f}" for name in ("before", "after", "moved"))
            lines.append(f"| {beta} | {distances} | {found['kept']:.0%} |")
    return "\n".join(lines) + "\n"
