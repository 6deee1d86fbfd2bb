"""Why an answer says what it says, on a terminal: its tokens coloured by how much the guide moved them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parm_mlx.cli import console

if TYPE_CHECKING:
    from parm_mlx.guidance.explain import TokenReasons
    from parm_mlx.mlxlm import TokenizerWrapper

SHOWN = 6  # tokens that were moved most
MOVED = (0.5, 2.0)  # nats: a little, and much
RAISED, LOWERED = ("green", "bold green"), ("red", "bold red")


def show_reasons(reasons: "Sequence[TokenReasons]", tokenizer: "TokenizerWrapper") -> None:
    """Prints an answer in colour, and its tokens that the guide moved most, with what the base would have said."""
    from rich.text import Text

    from parm_mlx.guidance.explain import texts_of

    texts = texts_of(tokenizer, [each.token for each in reasons])
    coloured = Text()
    for each, text in zip(reasons, texts, strict=True):
        coloured.append(console.visible(text), _style(_moved(each)))
    console.stdout().print(coloured)
    if all(each.base is None for each in reasons):
        _show_least_likely(reasons, texts, tokenizer)
        return
    most = sorted(range(len(reasons)), key=lambda i: -abs(_moved(reasons[i])))[:SHOWN]
    for i in sorted(most):
        each = reasons[i]
        assert each.base is not None
        assert each.guide is not None
        assert each.base_top is not None
        likeliest = each.base_top[0][0]
        other = "" if likeliest == each.token else f"; the base alone: {tokenizer.decode([likeliest])!r}"
        shares = f"{_percent(each.base)} by the base, {_percent(each.guide)} by the guide, {_percent(each.logprob)}"
        console.echo(f"  {texts[i]!r}: {shares} together{other}")


def _show_least_likely(
    reasons: "Sequence[TokenReasons]", texts: "Sequence[str]", tokenizer: "TokenizerWrapper"
) -> None:
    """Prints the tokens that were least likely, each with the likeliest one."""
    least = sorted(range(len(reasons)), key=lambda i: reasons[i].logprob)[:SHOWN]
    for i in sorted(least):
        likeliest, logprob = reasons[i].top[0]
        other = "" if likeliest == reasons[i].token else f"; {tokenizer.decode([likeliest])!r} has {_percent(logprob)}"
        console.echo(f"  {texts[i]!r}: {_percent(reasons[i].logprob)}{other}")


def _moved(reasons: "TokenReasons") -> float:
    return 0.0 if reasons.base is None else reasons.logprob - reasons.base


def _style(moved: float) -> str:
    colours = RAISED if moved > 0 else LOWERED
    return "" if abs(moved) < MOVED[0] else colours[abs(moved) >= MOVED[1]]


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.3g} %"
