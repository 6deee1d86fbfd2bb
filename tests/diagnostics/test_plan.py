import pytest

from parm_mlx.diagnostics.plan import Plan, Size
from parm_mlx.errors import InputError


def test_every_batch_is_measured_at_the_first_prompt_and_every_prompt_at_the_first_batch() -> None:
    plan = Plan(batches=(2, 8), prompts=(16, 64, 128), rounds=3)
    assert plan.groups() == [(2, 16), (8, 16), (2, 64), (2, 128)]
    assert plan.steps == 4 * (1 + 3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden": 100}, "--hidden must be a multiple of 64, got 100"),
        ({"bits": 7}, "--bits must be one of 2, 3, 4, 5, 6, 8, got 7"),
    ],
)
def test_sizes_that_make_no_model_are_refused(settings: dict[str, int], reason: str) -> None:
    """The command line has checked the ranges of all numbers before."""
    with pytest.raises(InputError, match=reason):
        Size(**settings)
