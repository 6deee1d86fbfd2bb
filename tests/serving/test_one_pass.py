"""The server where one pass stands for base and guide."""

import pytest

from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.serving.engine import Engine
from tests.serving.asking import Asked, alone, engine_of
from tests.serving.running import MODEL, QUESTION


@pytest.fixture(scope="module")
def session() -> Session:
    """The bundled models, in one pass."""
    found = load_session(MODEL, guidance="one-pass")
    assert isinstance(found.model, OnePassModel)
    return found


def test_answers_in_a_mixed_batch_are_those_that_come_alone(engine: Engine, session: Session) -> None:
    wanted = [((1.0, 0.0), None), ((0.0, 1.0), 0.5), (None, None), ((0.0, 1.0), 2.0), ((0.5, 0.5), 1.0)]
    asked = [
        Asked(engine, f"{QUESTION} {i % 3}", alpha, 8 + i, beta=beta) for i, (alpha, beta) in enumerate(wanted * 2)
    ]
    for each in asked:
        each.done()
        assert each.text == alone(session, each)


def test_what_is_kept_belongs_to_alpha_and_beta(session: Session) -> None:
    with engine_of(session) as engine:

        def cached(alpha: tuple[float, float] | None, beta: float | None = None) -> int:
            asked = Asked(engine, f"{QUESTION} With milk, with water and with salt?", alpha, 6, beta=beta)
            found = asked.done().cached
            assert asked.text == alone(session, asked)
            return found

        assert [cached((1.0, 0.0), 1.0), cached((1.0, 0.0), 0.5), cached((0.0, 1.0), 1.0), cached(None)] == [0] * 4
        for alpha, beta in (((1.0, 0.0), 1.0), ((1.0, 0.0), 0.5), ((0.0, 1.0), 1.0), (None, None)):
            assert cached(alpha, beta) > 8


def test_explain_tells_one_distribution_and_the_parts_when_asked(engine: Engine) -> None:
    one, parts = (Asked(engine, QUESTION, (0.0, 1.0), 6, explain=explain).done() for explain in (True, "parts"))
    assert one.reasons is not None
    assert parts.reasons is not None
    assert len(one.reasons) == len(parts.reasons) == 6
    assert all(each.base is None and each.guide_top is None for each in one.reasons)
    assert all(each.base is not None and each.guide_top for each in parts.reasons)
    assert [each.logprob for each in one.reasons] == pytest.approx([each.logprob for each in parts.reasons], abs=1e-4)
