"""Prompts and answers that are kept, and what of them is used again."""

import mlx.core as mx
import pytest

from parm_mlx.guidance.session import Session
from parm_mlx.serving.engine import Engine
from tests.serving.asking import Asked, alone, engine_of
from tests.serving.running import QUESTION


def test_prompts_and_answers_are_kept_by_alpha(engine: Engine) -> None:
    asked = Asked(engine, QUESTION, tokens=60)
    first = asked.done()
    assert first.reason == "stop"  # the cache has read the end, too
    assert (first.cached, first.guide_cached) == (0, 0)
    repeated = Asked(engine, QUESTION, tokens=60, top_logprobs=0)
    again = repeated.done()
    assert repeated.text == asked.text
    assert again.cached == again.guide_cached == first.prompt_tokens - 1
    cut = Asked(engine, f"{QUESTION} Now", tokens=60, stops=(" can",))
    assert cut.done().stop == " can"
    whole, fresh = Asked(engine, f"{QUESTION} Now", tokens=60), Asked(engine, f"{QUESTION} Now", tokens=60)
    assert min(whole.done().cached, fresh.done().guide_cached) > first.prompt_tokens - 2
    assert whole.text == fresh.text == alone(engine.session, whole)
    assert whole.text.startswith(cut.text)
    other = Asked(engine, QUESTION, (0.0, 1.0)).done()
    assert (other.cached, other.guide_cached) == (first.prompt_tokens - 1, 0)
    base = Asked(engine, QUESTION, None).done()
    assert (base.cached, base.guide_cached) == (first.prompt_tokens - 1, 0)
    weaker = Asked(engine, QUESTION, beta=3.0).done()
    assert weaker.guide_cached == first.prompt_tokens - 1


@pytest.mark.parametrize("size", [0, 1])
def test_a_small_prompt_cache_stays_small(session: Session, size: int) -> None:
    with engine_of(session, prompt_cache_size=size) as engine:
        for i in range(8):
            Asked(engine, f"{QUESTION} {i} {'And more? ' * 30}", tokens=4).done()
        assert engine.cached_bytes <= size << 20


def test_what_is_kept_is_what_is_counted(engine: Engine) -> None:
    """The kept entries of the guide hold no matrices that were bound for a batch."""
    for i in range(4):
        Asked(engine, f"{QUESTION} {i}", (i / 4, 1 - i / 4), tokens=4).done()
    before = mx.get_active_memory() - engine.cached_bytes
    engine._kept.clear()
    mx.synchronize()
    assert before - mx.get_active_memory() < 1_000_000  # those of four preferences would be 1.4 MB
