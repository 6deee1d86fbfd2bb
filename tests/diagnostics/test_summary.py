import pytest

from parm_mlx.diagnostics.bench import Case
from parm_mlx.diagnostics.summary import summarise
from parm_mlx.diagnostics.timing import Sample


def case(name: str, decode: list[float], acceptance: float | None = None) -> Case:
    """Two sequences with prompts of 10 tokens; 20 tokens each in every round."""
    return Case(name, 2, 10, 3_000_000, 4_500_000, [Sample(0.5, seconds, 40, acceptance) for seconds in decode])


def test_rates_and_ratios_by_hand() -> None:
    """20 tokens of each sequence in 2, 4 and 2 s: 100, 200, 100 ms; the floor is 4, 8 and 6 s.

    Guided in 5, 8 and 6 s: 0.8, 1 and 1 of the floor, and 2/5, 1/2, 1/3 of unguided.
    """
    base, guide, guided = summarise(
        [case("base", [2.0, 4.0, 2.0]), case("guide", [2.0, 4.0, 4.0]), case("guided", [5.0, 8.0, 6.0], 0.625)]
    )
    assert (base["case"], base["batch"], base["prompt"], base["rounds"]) == ("base", 2, 10, 3)
    assert base["ms_per_token"] == 100
    assert base["ms_per_token_spread"] == [100, 200]
    assert base["decode_tokens_per_second"] == 20
    assert base["decode_tokens_per_second_spread"] == [10, 20]
    assert base["prefill_tokens_per_second"] == 40, "2 · 10 tokens in 0.5 s"
    assert base["of_unguided_spread"] == [1, 1]
    assert guide["of_unguided"] == 1
    assert guide["of_unguided_spread"] == [0.5, 1]
    assert guided["of_floor"] == 1
    assert guided["of_floor_spread"] == [0.8, 1]
    assert guided["of_unguided"] == 0.4
    assert guided["of_unguided_spread"] == [pytest.approx(1 / 3, abs=1e-5), 0.5]
    assert (guided["weights_mb"], guided["peak_mb"]) == (3.0, 4.5)
    assert (base["accepted"], guided["accepted"]) == (None, 0.625)


def test_more_tokens_than_asked_for_count() -> None:
    """A draft may bring more tokens in its last step: 2 s for 25 of each sequence are 80 ms."""
    drafted = Case("drafted", 2, 10, 1, 1, [Sample(0.5, 2.0, 50, 0.5)])
    rows = summarise([case("base", [2.0]), case("guide", [2.0]), drafted])
    assert rows[2]["ms_per_token"] == 80
    assert rows[2]["of_unguided"] == 1.25
    assert rows[2]["of_floor"] == 2.5
