"""The engine with a PARM of another vocabulary: answers of a batch are those that come alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from parm_mlx.guidance.across import AcrossModel
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.serving.engine import Engine
from tests.serving.asking import Asked, alone, engine_of
from tests.serving.running import QUESTION


@pytest.fixture(scope="module")
def session(official_parm: Path) -> Session:
    return load_session("bundled", official_parm, across_candidates=10)


@pytest.fixture
def engine(session: Session) -> Iterator[Engine]:
    with engine_of(session, max_queue=100) as running:
        yield running


def test_answers_in_a_mixed_batch_are_those_that_come_alone(engine: Engine, session: Session) -> None:
    assert isinstance(session.model, AcrossModel)
    alphas = [(1.0, 0.0), (0.0, 1.0), None]
    asked = [
        Asked(engine, f"{QUESTION} {i % 4}", alphas[i % 3], 6 + i, beta=0.5 if i % 3 == 1 else None) for i in range(7)
    ]
    for each in asked:
        each.done()
        assert each.text == alone(session, each)


def test_prompts_are_kept_and_reasons_are_told(engine: Engine) -> None:
    first = Asked(engine, QUESTION, tokens=8)
    first.done()
    again = Asked(engine, QUESTION, tokens=8, explain=True)
    done = again.done()
    assert again.text == first.text
    assert done.guide_cached > 0
    assert done.cached > 0
