"""The error of an answer whose logits are not finite."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import RunError
from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.guidance.prefill import read
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.kernels import widened
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.preference import Alpha


def not_finite(
    model: GuidedModel, prompt: PromptTokens, alpha: Alpha | None, tokens: Sequence[int], others: int = 0
) -> RunError:
    """The error of an answer that cannot go on. It reads the answer once more, to say whose logits are not finite.

    Args:
        model: The guided model.
        prompt: The prompt's tokens for base and guide.
        alpha: The preference; None where the base answers alone.
        tokens: The answer so far.
        others: Number of other answers that ended in the same way.
    """
    names = []
    if _breaks(model.base, make_prompt_cache(model.base), [*prompt.base, *tokens]):
        names.append("the base")
    if alpha is not None and _breaks(model.guide, model.guide.make_cache(alpha), [*prompt.guide, *tokens]):
        names.append("the guide")
    whose = " and ".join(names) or "base and guide together"
    more = f" (and {others} more)" if others else ""
    return RunError(
        f"the logits of {whose} are not finite: an answer ended after {len(tokens)} tokens{more}",
        hint="the weights may be damaged, or their 16-bit type too narrow: try the model in float32",
    )


def _breaks(model: nn.Module, cache: Cache, tokens: Sequence[int]) -> bool:
    read(model, tokens[:-1], cache)
    logits = widened(model(mx.array([tokens[-1:]]), cache=cache))
    return not mx.isfinite(mx.logsumexp(logits)).item()
