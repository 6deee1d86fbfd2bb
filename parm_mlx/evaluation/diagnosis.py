"""Signs that guidance failed, in words, each from a stated threshold."""

from collections.abc import Iterable, Mapping
from typing import Any

from parm_mlx.evaluation.report.formatting import interval, number, vector

Summary = Mapping[str, Any]
Finding = tuple[bool, str, float | None, float]  # found, text, value, threshold

SMALL_DIFFERENCE = 0.2  # between corners, in standard deviations of the unguided answers
CLUSTER_SHARE = 0.5  # of the grid in one cluster
CLUSTER_GRID = 5  # fewer preferences are not searched for clusters
HIGH_HV = 1.1  # times the hypervolume of the unguided answers
COST = 1.1  # times a pass of the base and one of the guide
PLAIN_COST = 1.5  # times a pass of the base and one of the guide's backbone without its adapter
SHARED_COST = 1.1  # the same, where base and guide share one pass
ALONE_COST = 3.0  # times a pass of the base, where the backbone was not measured
CUT_SHARE = 0.1  # of the answers
DOMINATED_SHARE = 0.5  # of the points
FEW_PROMPTS = 20


def diagnose(summary: Summary) -> list[dict[str, Any]]:
    """Tests the content of a run's ``metrics.json`` (without the diagnosis) for every known sign of failure.

    Returns:
        For each: ``name``, ``found``, ``text`` with the numbers and advice, and the ``value`` that was compared with
        the ``threshold`` (None if it could not be measured).
    """
    findings = {
        "no effect": _no_effect(summary),
        "clustered front": _clustered(summary),
        "conditioning failed": _conditioning(summary),
        "reversed objective": _reversed(summary),
        "worse than the base": _worse_than_base(summary),
        "guidance cost": _cost(summary),
        "cut answers": _cut(summary),
        "few prompts": _few_prompts(summary),
    }
    return [
        {"name": name, "found": found, "text": text, "value": value, "threshold": threshold}
        for name, (found, text, value, threshold) in findings.items()
    ]


def _no_effect(summary: Summary) -> Finding:
    """The scores do not move from one corner of the simplex to the other."""
    if len(summary["points"]) == 1 < len(summary["objectives"]):
        return False, "Only one preference was evaluated: its effect cannot be seen.", None, 0.0
    differences = summary["corner_difference"]
    limits = {name: SMALL_DIFFERENCE * summary["normalization"]["spread"][name] for name in differences}
    flat = {
        name: difference
        for name, difference in differences.items()
        if difference["low"] <= 0 <= difference["high"] or abs(difference["value"]) < limits[name]
    }
    value, limit = min(
        ((abs(differences[name]["value"]), limits[name]) for name in differences), key=lambda pair: pair[0] - pair[1]
    )
    where = "with the guide and without" if len(differences) == 1 else "between the corners of the preferences"
    if not flat:
        shown = ", ".join(f"{name} {number(difference['value'])}" for name, difference in differences.items())
        return False, f"Scores differ {where}: {shown}.", value, limit
    shown = ", ".join(f"{name} {interval(difference)}" for name, difference in flat.items())
    text = (
        f"The preference has little or no effect on {_listed(flat)}: {where} the score differs by {shown}, which is "
        f"below {SMALL_DIFFERENCE:g} standard deviations of the unguided answers or indistinguishable from 0. "
        "Guide more strongly (a smaller --beta), train longer, or evaluate more prompts."
    )
    return True, text, value, limit


def _clustered(summary: Summary) -> Finding:
    """Many preferences share one point of the front."""
    grid = len(summary["points"])
    if grid < CLUSTER_GRID:
        text = f"{grid} preference(s) are too few to find clusters; at least {CLUSTER_GRID} are needed."
        return False, text, None, CLUSTER_SHARE
    largest = max(summary["front"]["clusters"], key=len, default=[0])
    share = len(largest) / grid
    if share <= CLUSTER_SHARE:
        text = f"At most {len(largest)} of {grid} neighbouring preferences are indistinguishable by their scores."
        return False, text, share, CLUSTER_SHARE
    first, last = (vector(summary["points"][index]["alpha"]) for index in (largest[0], largest[-1]))
    text = (
        f"The front is clustered: {len(largest)} of {grid} preferences, from {first} to {last}, have scores that "
        f"are indistinguishable on {summary['prompts']} prompts. Evaluate more prompts; if they stay together, guide "
        "more strongly (a smaller --beta) or train with preferences from all of the simplex."
    )
    return True, text, share, CLUSTER_SHARE


def _conditioning(summary: Summary) -> Finding:
    """Answers are good, and do not follow the preference."""
    gain = summary["mip_gain"]
    if len(summary["objectives"]) == 1 or len(summary["points"]) == 1:
        return False, "With one preference there is nothing to follow.", None, 0.0
    base = summary["hv_unguided"]
    value, shown = summary["hv"]["value"], interval(gain)
    hv = f"{value / base:.2f} times that of the unguided answers" if base > 0 else "above 0 of the unguided answers"
    failed = gain["low"] <= 0 and value > HIGH_HV * base
    if failed:
        text = (
            f"Conditioning failed: the hypervolume is high, {hv}, but the MIP is not above that of the mean point at "
            f"every preference ({shown}). Answers are better, yet not in the way that was asked for. Check the order "
            "of the objectives and the labels, and that training drew preferences from all of the simplex."
        )
    elif gain["low"] > 0:
        text = f"Scores follow the preference: the MIP is {shown} above that of the mean point at every preference."
    else:
        text = f"The MIP is not above that of the mean point ({shown}), but nor is the hypervolume high ({hv})."
    return failed, text, gain["low"], 0.0


def _reversed(summary: Summary) -> Finding:
    """A score falls as its weight rises."""
    found = {name: rho for name, rho in summary["spearman"].items() if rho["high"] < 0}
    value = min(rho["high"] for rho in summary["spearman"].values())
    if not found:
        shown = ", ".join(f"{name} {interval(rho)}" for name, rho in summary["spearman"].items())
        return False, f"No score falls over the whole of its weights (Spearman {shown}).", value, 0.0
    shown = ", ".join(f"{name} {interval(rho)}" for name, rho in found.items())
    text = (
        f"{_listed(found)} falls as its weight rises (Spearman {shown}). Check that the objectives are named in the "
        "order of training (official adapters of the safety task: harmless, helpful), that labels name the preferred "
        "answer, and that a larger score of the reward is better (a cost must be negated)."
    )
    return True, text, value, 0.0


def _worse_than_base(summary: Summary) -> Finding:
    """The base alone is better in every objective."""
    points, base = summary["points"], summary["unguided"]["scores"]
    worse = sum(
        all(point["scores"][name]["high"] < base[name]["mean"] for name in summary["objectives"]) for point in points
    )
    share = worse / len(points)
    at = f"At {worse} of {len(points)} preferences"
    text = f"{at} the answers are worse than those of the base alone in every objective"
    if share < DOMINATED_SHARE:
        return False, f"{text}.", share, DOMINATED_SHARE
    advice = "Guide less strongly (a larger --beta), and check that base and guide have the templates that they were"
    return True, f"{text}: guidance harms. {advice} trained with.", share, DOMINATED_SHARE


def _cost(summary: Summary) -> Finding:
    """A guided token costs more than its two passes, or these more than those of the plain models."""
    time = summary["time"]
    if not all(time.get(part, 0) > 0 for part in ("base_token_ms", "guide_token_ms", "guided_token_ms")):
        return False, "The cost of a guided token was not measured.", None, COST
    base, guide, guided = time["base_token_ms"], time["guide_token_ms"], time["guided_token_ms"]
    plain = time.get("backbone_token_ms", 0)
    limit = ALONE_COST if plain <= 0 else SHARED_COST if time.get("shared") else PLAIN_COST
    passes, alone = guided / (base + guide), guided / (base + max(plain, 0))
    text = (
        f"A guided token takes {guided:.1f} ms, {guided / base:.2f} times one of the base alone ({base:.1f} ms) and "
        f"{passes:.2f} times the {base + guide:.1f} ms of a pass of the base and one of the guide ({guide:.1f} ms)"
    )
    if plain > 0:
        text += f", whose backbone takes {plain:.1f} ms without the adapter"
    slow, dear = passes > COST, alone > limit
    if not (slow or dear):
        return False, f"{text}.", passes, COST
    if slow:
        why = "the adapter is slow to apply, or the machine was busy"
        if time.get("across_passes_per_token"):
            why = f"the guide has another vocabulary and takes {time['across_passes_per_token']:.2f} passes per token"
        text += f". That is over {COST:g} times both passes: {why}"
    if dear:
        of = "the base and the plain backbone" if plain > 0 else "the base alone"
        text += f". It is over {limit:g} times {of}: the adapter itself, or a large guide, takes the time"
    text += f". {_cheaper(time)} Measure again with parm-mlx bench, and look for slow kernels with parm-mlx doctor."
    return True, text, *((passes, COST) if slow else (alone, limit))


def _cheaper(time: Mapping[str, float]) -> str:
    """Lists cheaper ways to generate than the one that was measured."""
    ways = []
    if time.get("same_weights"):
        ways.append("base and guide have the same weights and can share one pass (leave out --share off)")
    elif not time.get("shared"):
        ways.append("a guide on the base's own weights shares its pass, and a smaller guide is faster")
    if time.get("across_passes_per_token", 0) > 1.2:
        ways.append("a larger --across-tolerance asks a guide of another vocabulary less often")
    if not time.get("drafted") and not time.get("shared") and not time.get("across_passes_per_token"):
        ways.append("one answer at a time, in a chat, is decoded with drafts where these pay (--speculation)")
    ways.append("answers in a batch (--batch-size, several prompts) read the weights together")
    return f"What costs less: {'; '.join(ways)}."


def _cut(summary: Summary) -> Finding:
    """Answers were cut by the limit of tokens, and scored unfinished."""
    points = [summary["unguided"], *summary["points"]]
    share = 1 - sum(point["ended"] for point in points) / len(points)
    text = f"{share:.0%} of the answers were cut by the limit of tokens"
    if share <= CUT_SHARE:
        return False, f"{text}.", share, CUT_SHARE
    return True, f"{text}, and their scores are those of unfinished answers. Raise --max-tokens.", share, CUT_SHARE


def _few_prompts(summary: Summary) -> Finding:
    """Too few prompts for intervals that can be trusted."""
    count = summary["prompts"]
    if count >= FEW_PROMPTS:
        return False, f"{count} prompts were evaluated.", count, FEW_PROMPTS
    so = "there are no confidence intervals" if count == 1 else "the confidence intervals are rough"
    return True, f"Only {count} prompt(s) were evaluated: {so}. Take {FEW_PROMPTS} or more.", count, FEW_PROMPTS


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
