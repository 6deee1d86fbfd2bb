"""The model card of the bundled pair, written from what the scripts measured."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

TEMPLATE = HERE / "card_template.md"


def publish(work: Path, models: Path) -> None:
    """Writes MODEL_CARD.md and results.json here, and the card beside the models.

    Args:
        work: Where make_base.py, make_parm.py and measure.py left their numbers.
        models: The folder of the bundled models.
    """
    base, pairs, parm, results = (_read(work / f"{name}.json") for name in ("base", "pairs", "parm", "results"))
    adapter = _read(models / "parm" / "adapter_config.json")
    text = TEMPLATE.read_text(encoding="utf-8").format(**_values(base, pairs, parm, results, adapter))
    (HERE / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    (models / "README.md").write_text(text, encoding="utf-8")
    everything = {"base": base, "pairs": pairs, "parm": parm} | results
    (HERE / "results.json").write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _values(base: Any, pairs: Any, parm: Any, results: Any, adapter: Any) -> dict[str, Any]:
    import make_base
    import measure
    import world

    train, held = world.split()
    summary, settings = results["summary"], adapter["training"]["settings"]
    rows = [_row("unguided", results["unguided"])]
    rows += [_row(f"{row['alpha'][0]:g}, {row['alpha'][1]:g}", row) for row in results["guided"]]
    return {
        "parameters": base["parameters"] / 1e6,
        "tokens": base["tokens"] / 1e6,
        "base_minutes": base["minutes"],
        "held_out_perplexity": base["held_out_perplexity"],
        "vocabulary": make_base.ARCHITECTURE["vocab_size"],
        "topics": len(world.topics()),
        "prompts_all": f"{len(train) + len(held):,}",
        "held_out": len(held) / (len(train) + len(held)),
        "pairs": pairs["pairs"],
        "disagree": pairs["disagree"],
        "sampling_minutes": pairs["sampling_minutes"],
        "training_minutes": parm["training_minutes"],
        "r1": adapter["r1"],
        "targets": ", ".join(adapter["target_modules"]),
        "beta_objective": adapter["objective_betas"][0],
        "iters": settings["iters"],
        "batch_size": settings["batch_size"],
        "measuring_minutes": results["measuring_minutes"],
        "questions": results["questions"],
        "max_tokens": measure.MAX_TOKENS,
        "table": "\n".join(rows),
        "spearman_warmth": summary["warmth"]["spearman"],
        "spearman_focus": summary["focus"]["spearman"],
        "corner_warmth": summary["warmth"]["corner_difference_sd"],
        "corner_focus": summary["focus"]["corner_difference_sd"],
        "hv": summary["hv"],
        "mip": summary["mip"],
        "answers": "\n\n".join(_answer(shown) for shown in results["answers"]),
    }


def _row(name: str, row: Any) -> str:
    scores = row["scores"]
    cells = (
        name,
        f"{scores['warmth']:.2f}",
        f"{scores['focus']:.1f}",
        f"{row['on_topic']:.0%}",
        f"{row['ended']:.0%}",
    )
    return "| " + " | ".join((*cells, f"{row['base_perplexity']:.2f}")) + " |"


def _answer(shown: Any) -> str:
    warmth, focus = shown["alpha"]
    return f"**{shown['question']}** (warmth {warmth:g}, focus {focus:g})\n\n> {shown['answer']}"
