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
        ({"batches": ()}, "--batch must name at least one number"),
        ({"batches": (4, 0)}, "--batch must be a whole number from 1 to 4096, got 0"),
        ({"prompts": (-1,)}, "--prompt must be a whole number"),
        ({"tokens": 0}, "--tokens must be a whole number"),
        ({"tokens": 10**30}, "--tokens must be a whole number from 1 to 1048576, got 1000"),
        ({"rounds": 0}, "--rounds must be a whole number"),
    ],
)
def test_numbers_below_one_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Plan(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden": 100}, "--hidden must be a multiple of 64, got 100"),
        ({"hidden": 0}, "--hidden must be"),
        ({"layers": 0}, "--layers must be a whole number from 1 to 1000, got 0"),
        ({"vocabulary": 0}, "--vocabulary must be a whole number"),
        ({"hidden": 10**30}, "--hidden must be a whole number from 64 to 65536"),
        ({"bits": 7}, "--bits must be one of 2, 3, 4, 5, 6, 8, got 7"),
    ],
)
def test_sizes_that_make_no_model_are_refused(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Size(**settings)
