"""One pass that stands for base and guide: the formula by hand, mixed batches, and where it is refused."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guide, tiny_model

import parm_mlx
from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.explain import explain
from parm_mlx.guidance.generate import generate_batch, stream
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel, fuse_guided
from parm_mlx.guidance.prefill import read
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import load_session
from parm_mlx.mlxlm import PreferenceCache, make_prompt_cache
from parm_mlx.pblora.adapter import adapted_layers

PROMPT = [3, 14, 15, 9, 26, 5]
MIXED = [((0.3, 0.7), 0.5), ((1.0, 0.0), 2.0), ((0.3, 0.7), 2.0), ((0.0, 1.0), 1.0)]  # α and β


def by_hand(guide: Guide, family: str, ids: list[int], alpha: tuple[float, ...], beta: float) -> mx.array:
    """(1 + 1/β) · z(θ + c ΔW(α)) with c = 1/(1 + β), every weight of the plain model changed by c ΔW(α)."""
    plain = tiny_model(family, 1)
    for name, layer in adapted_layers(guide.model).items():
        number, path = name.removeprefix("layers.").split(".", 1)
        module = plain.layers[int(number)]
        for part in path.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        module.weight = module.weight + layer.delta(mx.array(alpha)) / (1 + beta)
    return (1 + 1 / beta) * plain(mx.array([ids]))[0]


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize(("alpha", "beta"), MIXED)
def test_it_is_the_backbone_with_a_share_of_the_update(family: str, alpha: tuple[float, float], beta: float) -> None:
    guide = tiny_guide(family)
    model = OnePassModel(guide, beta)
    expected = by_hand(guide, family, PROMPT, alpha, beta)
    whole = model(mx.array([PROMPT]), cache=model.make_cache(alpha))[0]
    np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=2e-3)
    cache = model.make_cache(alpha)
    read(model, PROMPT[:-1], cache)
    np.testing.assert_allclose(model(mx.array([PROMPT[-1:]]), cache=cache)[0, -1], expected[-1], rtol=1e-3, atol=2e-3)


def test_without_a_cache_the_defaults_hold() -> None:
    guide = tiny_guide()
    model = OnePassModel(guide, 0.5)
    expected = by_hand(guide, "llama", PROMPT, guide.alpha, 0.5)
    for row in model(mx.array([PROMPT, PROMPT])):
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=2e-3)


def test_at_strength_0_it_is_the_base_alone_bit_for_bit() -> None:
    model = OnePassModel(tiny_guide())
    ids = mx.array([PROMPT])
    assert mx.array_equal(model(ids, cache=model.make_cache([0.3, 0.7], 0.0)), model.base_logits(ids))


def test_for_a_small_update_it_is_nearly_exact_and_the_error_of_second_order() -> None:
    """A tenth of the update has a hundredth of the error, up to higher orders; scaled logits of the base do not."""
    errors = []
    for size in (0.1, 0.01):
        guide = tiny_guide()
        for layer in guide.adapted:
            layer.b = size * layer.b
        ids = mx.array([PROMPT])
        exact = GuidedModel(tiny_model("llama", 1), guide)(ids)
        errors.append(float(mx.abs(OnePassModel(guide)(ids) - exact).max()))
    assert errors[0] > 1e-3
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "jamba"])
def test_rows_of_a_batch_have_their_own_alpha_and_beta(family: str) -> None:
    model = OnePassModel(tiny_guide(family))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, n).tolist() for n in (6, 6, 6, 6)]
    alone = []
    caches = []
    for prompt, (alpha, beta) in zip(prompts, [*MIXED[:3], ((0.5, 0.5), None)], strict=True):
        strength = 0.0 if beta is None else 1 / beta
        cache = model.make_cache(alpha, strength)
        read(model, prompt[:-1], cache)
        caches.append(cache)
        other = model.make_cache(alpha, strength)
        alone.append(model(mx.array([prompt]), cache=other)[0, -1])
    from mlx_lm.generate import _merge_caches

    together = model(mx.array([prompt[-1:] for prompt in prompts]), cache=_merge_caches(caches))[:, -1]
    for row, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "settings", [{"kind": "lora", "r2": 0}, {"kind": "svd-lora", "r2": 2}, {"kind": "moslora", "r1": 0}]
)
def test_rows_of_every_kind_of_adapter(settings: dict[str, Any]) -> None:
    """One pass and two rows of a shared pass, with α and β of each row."""
    from mlx_lm.generate import _merge_caches

    from parm_mlx.guidance.shared import SharedModel

    guide = tiny_guide(**settings)
    model, shared, two = OnePassModel(guide), SharedModel(guide), GuidedModel(tiny_model("llama", 1), guide)
    ids = mx.array([PROMPT] * len(MIXED))
    alone = [two(ids[:1], cache=two.make_cache(alpha, 1 / beta))[0] for alpha, beta in MIXED]

    def together(each: GuidedModel) -> mx.array:
        return each(ids, cache=_merge_caches([each.make_cache(alpha, 1 / beta) for alpha, beta in MIXED]))

    once, both = together(model), together(shared)
    for row, (alpha, beta) in enumerate(MIXED):
        expected = by_hand(guide, "llama", PROMPT, alpha, beta)
        np.testing.assert_allclose(once[row], expected, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(both[row], alone[row], rtol=1e-3, atol=2e-3)


def test_its_cache_is_half_of_the_exact_one() -> None:
    """The backbone's entries, and a preference of k + 1 numbers."""
    from parm_mlx.guidance.shared import SharedModel

    guide = tiny_guide()

    def size(model: GuidedModel) -> int:
        cache = model.make_cache()
        read(model, PROMPT, cache)
        return int(sum(entry.nbytes for entry in cache))

    assert 2 * (size(OnePassModel(guide)) - 12) == size(SharedModel(guide)) - 12


def test_a_changed_strength_is_bound_again() -> None:
    model = OnePassModel(tiny_guide())
    cache = model.make_cache([0.3, 0.7], 1.0)
    model(mx.array([PROMPT]), cache=cache)
    preference: PreferenceCache = cache[-1]
    before = preference.bound(model._bind, with_strength=True)
    preference.strength = mx.array([0.0])
    assert preference.bound(model._bind, with_strength=True) is not before
    base = make_prompt_cache(model.base)
    model.base(mx.array([PROMPT]), cache=base)
    logits = model(mx.array([[7]]), cache=[*base, preference])
    assert mx.allclose(logits, model.base_logits(mx.array([[*PROMPT, 7]]))[:, -1:], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma3_text", "gpt_neox", "gpt2", "mixtral", "jamba"])
@pytest.mark.parametrize("beta", [0.4, 1.0, 3.0])
def test_a_fused_model_is_one_pass_at_one_alpha_and_beta(family: str, beta: float) -> None:
    """With tied and untied output layers, norms with a bias, and norms that add one to their weight."""
    ids = mx.array([PROMPT])
    model = OnePassModel(tiny_guide(family), beta)
    expected = model(ids, cache=model.make_cache([0.3, 0.7]))
    fuse_guided(model.guide, (0.3, 0.7), beta)
    found = model.guide.model(ids)
    assert mx.abs(found - expected).max() < 1e-4 * mx.abs(expected).max()


@pytest.mark.parametrize("said", [True, False])
def test_logits_that_are_capped_cannot_be_fused(said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the family's setting; and by what the model computes, where it has no setting for it."""
    guide = tiny_guide()
    if said:
        guide.model.final_logit_softcapping = 30.0
    else:
        plain = type(guide.model).__call__
        monkeypatch.setattr(type(guide.model), "__call__", lambda *args, **more: mx.tanh(plain(*args, **more)))
    with pytest.raises(ModelError, match="are capped" if said else "do not scale with the weights of its final norm"):
        fuse_guided(guide, (0.3, 0.7), 1.0)


# --- with the bundled pair -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> Any:
    return load_session("bundled", guidance="one-pass")


def test_a_batch_of_mixed_alpha_and_beta_answers_as_each_does_alone(session: Any) -> None:
    wanted = [(None, None), ((1.0, 0.0), 0.5), ((0.0, 1.0), 0.5), ((0.0, 1.0), 2.0), ((0.5, 0.5), 1.0)]
    requests = [
        Request(session.prompter(text), alpha, Sampling(temp=temp, seed=3), beta=beta)
        for text, temp in (("How do I bake bread?", 0.0), ("Tell me about thunder.", 1.0))
        for alpha, beta in wanted
    ]
    texts = {a.index: a.text for a in generate_batch(session.model, session.tokenizer, requests, 24)}
    for index, request in enumerate(requests):
        alone = "".join(piece.text for piece in stream(session.model, session.tokenizer, request, 24))
        assert texts[index] == alone
    assert len({texts[i] for i in range(5)}) >= 4, "the preferences are followed"


def test_alpha_and_beta_switch_in_the_middle_of_a_conversation(session: Any) -> None:
    """Every answer is that of a conversation that has had its α and β from the beginning; the base's is the base's."""

    def answers(switch: Any) -> list[str]:
        model = OnePassModel(session.model.guide)
        talk = Conversation(model, session.tokenizer, session.prompter, (1.0, 0.0))
        said = []
        for number, question in enumerate(("How do I bake bread?", "And with milk?")):
            switch(number, talk, model)
            said.append("".join(piece.text for piece in talk.ask(question, Sampling(), 16)))
        return said

    def fresh(alpha: Any, beta: float) -> str:
        """The second question after the first answer of α = (1, 0), β = 1, all read under α and β."""
        model = OnePassModel(session.model.guide)
        talk = Conversation(model, session.tokenizer, session.prompter, (1.0, 0.0))
        list(talk.ask("How do I bake bread?", Sampling(), 16))
        state = talk.state()
        model.beta = beta
        other = Conversation(model, session.tokenizer, session.prompter, alpha)
        other.restore(state)
        return "".join(piece.text for piece in other.ask("And with milk?", Sampling(), 16))

    for alpha, beta in (((0.0, 1.0), 1.0), ((1.0, 0.0), 0.25), (None, 1.0)):

        def switch(number: int, talk: Any, model: Any, alpha: Any = alpha, beta: float = beta) -> None:
            if number:
                talk.alpha, model.beta = alpha, beta

        assert answers(switch)[1] == fresh(alpha, beta)


def test_explain_reports_one_distribution_and_the_two_when_asked(session: Any) -> None:
    request = Request(session.prompter("How do I bake bread?"), (0.0, 1.0), Sampling(), beta=0.5)
    (answer,) = generate_batch(session.model, session.tokenizer, [request], 8)
    alone = explain(session.model, request, answer.tokens)
    parts = explain(session.model, request, answer.tokens, parts=True)
    exact = explain(GuidedModel(session.model.base, session.model.guide), request, answer.tokens)
    assert [each.token for each in alone] == answer.tokens
    assert all(each.base is None and each.guide_top is None for each in alone)
    assert all(each.top[0][0] == each.token for each in alone), "greedy: the likeliest of the one distribution"
    for one, both, truth in zip(alone, parts, exact, strict=True):
        assert both.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert (both.base, both.guide) == pytest.approx((truth.base, truth.guide), abs=1e-4)
    assert any(abs(one.logprob - truth.logprob) > 1e-4 for one, truth in zip(alone, exact, strict=True))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_other_weights_several_guides_and_contradictions_are_refused_by_name(
    official: Path, official_parm: Path
) -> None:
    model, _ = parm_mlx.load(official / "arm_base", official_parm, guidance="one-pass")
    assert isinstance(model, OnePassModel)
    with pytest.raises(ModelError, match=r"one pass cannot stand for base .*base_lm and guide model .*arm_base"):
        parm_mlx.load(official / "base_lm", official_parm, guidance="one-pass")
    with pytest.raises(ModelError, match=r"one pass cannot stand for .*: their vocabularies differ"):
        parm_mlx.load("bundled", official_parm, guidance="one-pass")
    with pytest.raises(ModelError, match="several adapters that guide together"):
        parm_mlx.load(official / "arm_base", [official_parm, official_parm], guidance="one-pass")
    with pytest.raises(InputError, match="--guidance one-pass and --share off exclude each other"):
        parm_mlx.load(official / "arm_base", official_parm, share="off", guidance="one-pass")
    with pytest.raises(InputError, match="base and guide are one network") as refused:
        load_session("bundled", guidance="one-pass", speculation="base")
    assert "--draft-model" in str(refused.value.hint)
    with pytest.raises(InputError, match="must be exact or one-pass"):
        parm_mlx.load(official / "arm_base", official_parm, guidance="fast")  # type: ignore[arg-type]


def test_the_base_s_prompt_is_read_and_another_template_is_said(official: Path) -> None:
    session = load_session("bundled", guidance="one-pass", chat_template="alpaca")
    prompt = session.prompter("hello")
    assert prompt.base == prompt.guide
    assert isinstance(prompt, PromptTokens)
    assert "### Instruction" in session.tokenizer.decode(prompt.base)
