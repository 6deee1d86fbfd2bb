"""The cost of a guided token, beside those of the models that guidance is made of."""

import statistics
from functools import partial

from parm_mlx.guidance.across import AcrossModel
from parm_mlx.guidance.guide import Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.shared import Backbone, SharedModel, weights_differ
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.preference import Alpha
from parm_mlx.timing import Generation, SingleGeneration, time_in_turns

TOKENS, ROUNDS = 24, 3
BACKBONE = "backbone_token_ms"


def token_costs(model: GuidedModel, prompt: PromptTokens, alpha: Alpha, drafted: bool = False) -> dict[str, float]:
    """Measures milliseconds per token, one sequence each, in turns; medians of a few rounds.

    Returns:
        ``base_token_ms``, ``guide_token_ms``, ``guided_token_ms`` and ``backbone_token_ms`` (the guide's backbones
        without their adapters); and 1 or 0 for ``shared`` (base and guide share a forward pass), ``same_weights``
        (they could) and ``drafted``, which is only recorded.
    """
    own = model.guide.guide if isinstance(model, AcrossModel) else model.guide
    guides = own.guides if isinstance(own, Guides) else [own]
    shared = isinstance(model, SharedModel | OnePassModel)
    backbones = {} if shared else {f"{BACKBONE} {i}": Backbone(guide.model) for i, guide in enumerate(guides)}
    preferring = {"guide_token_ms": own, "guided_token_ms": model}
    models = {"base_token_ms": model.base, **backbones, **preferring}

    def start(name: str) -> Generation:
        of = models[name]
        tokens = prompt.base if of in (model, model.base) else prompt.guide
        return SingleGeneration(of, tokens, of.make_cache(alpha) if name in preferring else make_prompt_cache(of))

    starts = {name: partial(start, name) for name in models}
    rounds = [time_in_turns(starts, TOKENS) or {} for _ in range(ROUNDS)]
    found = {
        name: statistics.median(1000 * samples[name].decode / samples[name].tokens for samples in rounds)
        for name in models
    }
    found[BACKBONE] = sum(found.pop(name) for name in backbones) if backbones else found["base_token_ms"]
    same = not shared and len(guides) == 1 and weights_differ(model.base, guides[0].model) is None
    return found | {"shared": float(shared), "same_weights": float(same), "drafted": float(drafted)}
