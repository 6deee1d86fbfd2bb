"""Guides that answer by themselves: rewarded soups and MOD, in batches of mixed preferences."""

import mlx.core as mx
import numpy as np
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.guide import Guide, Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.policy import PolicyModel
from parm_mlx.guidance.prefill import read
from parm_mlx.pblora import adapter_tensors, load_into, soup

PROMPT = [3, 14, 15, 9, 26, 5]
ALPHAS = [(1.0, 0.0), (0.25, 0.75), (0.0, 1.0)]


def experts() -> list[Guide]:
    """Two adapters of one objective each, on one backbone."""
    found = [tiny_guide(objectives=("helpful",), r1=2, r2=1), tiny_guide(objectives=("harmless",), kind="lora", r2=0)]
    for layer in found[1].adapted:
        layer.b = -0.5 * layer.b
    return found


def logprobs(logits: mx.array) -> np.ndarray:
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def together(model: GuidedModel) -> list[np.ndarray]:
    """Log-probabilities after PROMPT under every α, one batch; all but the last token are read into caches before."""
    from mlx_lm.generate import _merge_caches

    caches = [model.make_cache(alpha) for alpha in ALPHAS]
    for cache in caches:
        read(model, PROMPT[:-1], cache)
    logits = model(mx.array([PROMPT[-1:]] * len(ALPHAS)), cache=_merge_caches(caches))
    assert len(model.layers) == len(caches[0])
    return list(logprobs(logits[:, -1]))


def test_mod_mixes_log_probabilities() -> None:
    guides = experts()
    own = [logprobs(guide(mx.array([PROMPT]))[0, -1]) for guide in guides]
    for found, alpha in zip(together(PolicyModel(tiny_model(), Guides(guides))), ALPHAS, strict=True):
        expected = logprobs(mx.array(alpha[0] * own[0] + alpha[1] * own[1]))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_soup_mixes_weights_and_its_corners_are_the_experts() -> None:
    guides = experts()
    config, tensors = soup([(guide.config, adapter_tensors(guide.model)) for guide in guides])
    model = tiny_model("llama", 1)
    load_into(model, config, tensors)
    policy = PolicyModel(tiny_model(), Guide(model, config))
    first, middle, last = together(policy)
    for found, guide in ((first, guides[0]), (last, guides[1])):
        np.testing.assert_allclose(found, logprobs(guide(mx.array([PROMPT]))[0, -1]), rtol=1e-3, atol=1e-3)
    mod = together(PolicyModel(tiny_model(), Guides(guides)))[1]
    assert np.abs(middle - mod).max() > 0.01, "between corners weights and log-probabilities mix differently"


def test_unguided_answers_are_the_bases_and_beta_has_no_meaning() -> None:
    base, guides = tiny_model(), experts()
    policy = PolicyModel(base, Guides(guides), beta=0.1)
    ids = mx.array([PROMPT])
    assert mx.allclose(policy.base_logits(ids), base(ids))
    assert policy.sharpness((0.25, 0.75)) == 1.0
    strong, weak = (policy(ids, cache=policy.make_cache(ALPHAS[1], strength)) for strength in (4.0, 0.25))
    assert mx.array_equal(strong, weak)
