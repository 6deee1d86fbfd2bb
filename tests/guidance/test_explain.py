"""What base and guide gave each token, against separate runs of both."""

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.errors import InputError
from parm_mlx.guidance import explain as explain_module
from parm_mlx.guidance.explain import explain
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import Session, load_session


@pytest.fixture(scope="module", params=["on", "off"])
def session(request: pytest.FixtureRequest) -> Session:
    return load_session("bundled", share=request.param)


def log_softmax(logits: mx.array) -> np.ndarray:
    numbers = np.array(logits.astype(mx.float32)).astype(np.float64)
    return (
        numbers
        - np.log(np.exp(numbers - numbers.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - numbers.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("beta", [None, 0.5])
@pytest.mark.parametrize("step", [4, 1000])
def test_the_three_numbers_are_those_of_separate_runs(
    session: Session, beta: float | None, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_module, "STEP", step)
    model, alpha = session.model, (0.3, 0.7)
    prompt = session.prompter("How do I bake bread?")
    prompt = PromptTokens(prompt.base, [*prompt.guide[:3], *prompt.guide])  # the guide may read another prompt
    request = Request(prompt, alpha, Sampling(temp=1.0, seed=3), beta=beta)
    (answer,) = generate_batch(model, session.tokenizer, [request], 12)
    found = explain(model, request, answer.tokens)

    guide = model.guide.make_cache(alpha)
    base_logits = model.base(mx.array([[*prompt.base, *answer.tokens[:-1]]]))[0, len(prompt.base) - 1 :]
    guide_logits = model.guide(mx.array([[*prompt.guide, *answer.tokens[:-1]]]), cache=guide)
    of_base, of_guide = log_softmax(base_logits), log_softmax(guide_logits[0, len(prompt.guide) - 1 :])
    guided = log_softmax(mx.array((of_base + of_guide / (beta or model.beta)).astype(np.float32)))
    assert [each.token for each in found] == answer.tokens
    for i, (token, each) in enumerate(zip(answer.tokens, found, strict=True)):
        numbers = [each.logprob, each.base, each.guide]
        assert numbers == pytest.approx([guided[i, token], of_base[i, token], of_guide[i, token]], abs=1e-4)
        for top, row in ((each.top, guided[i]), (each.base_top, of_base[i]), (each.guide_top, of_guide[i])):
            assert [token for token, _ in top] == list(np.argsort(-row)[: len(top)])
            assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][: len(top)], abs=1e-4)


def test_the_base_alone_has_no_reasons(session: Session) -> None:
    with pytest.raises(InputError, match="the base answers alone"):
        explain(session.model, Request(session.prompter("Hello"), None, Sampling()), [1, 2])
