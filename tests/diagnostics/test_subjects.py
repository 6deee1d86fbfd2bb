import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import Subjects, random_llama, random_subjects, weight_bytes
from parm_mlx.mlxlm import make_prompt_cache

SMALL = Size(hidden=64, layers=1, vocabulary=50)


def test_base_and_guide_have_different_weights_and_adapters_that_change_something() -> None:
    guided = random_subjects(SMALL).guided
    base, guide = guided.base.model.embed_tokens.weight, guided.guide.model.model.embed_tokens.weight
    assert mx.abs(base - guide).max().item() > 0
    tokens = mx.array([[1, 2, 3]])
    assert mx.abs(guided.guide(tokens, alpha=[1, 0]) - guided.guide(tokens, alpha=[0, 1])).max().item() > 0


@pytest.mark.parametrize("bits", [None, 4])
def test_the_bytes_of_weights(bits: int | None) -> None:
    """Hidden 64, one layer, feed-forward part 160 (quantised: 128), 50 tokens.

    Plain: 4 bytes for each of 2 · 50 · 64 (embedding and output) + 4 · 64² (attention) + 3 · 64 · 160 + 3 · 64 (norms).
    Quantised to 4 bits in groups of 64: half a byte, and 2 · 4 bytes a group; norms stay plain.
    """
    model = random_llama(Size(64, 1, 50, bits), 0)
    matrices = 2 * 50 * 64 + 4 * 64**2 + 3 * 64 * (128 if bits else 160)
    expected = matrices // 2 + matrices // 64 * 8 if bits else 4 * matrices
    assert weight_bytes(model) == expected + 4 * 3 * 64


def test_arrays_held_twice_count_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 2, bias=False)
            self.two = nn.Linear(4, 2, bias=False)

    model = Twice()
    assert weight_bytes(model) == 64
    model.two.weight = model.one.weight
    assert len(tree_flatten(model.parameters())) == 2
    assert weight_bytes(model) == 32


def test_prompts_repeat_the_text_from_different_places_and_preferences_differ() -> None:
    guided = random_subjects(SMALL).guided
    subjects = Subjects(guided, (7, 8, 9))
    assert subjects.prompts(2, 5) == [[7, 8, 9, 7, 8], [8, 9, 7, 8, 9]]
    assert subjects.alphas(1) == [(0.5, 0.5)]
    drawn = subjects.alphas(4)
    assert len(set(drawn)) == 4
    assert all(sum(alpha) == pytest.approx(1) for alpha in drawn)


def test_the_random_draft_is_a_quarter_of_the_base() -> None:
    subjects = random_subjects(Size(64, 8, 50))
    assert subjects.draft is not None
    assert len(subjects.draft.layers) == 2
    assert len(make_prompt_cache(subjects.draft)) == 2
    assert subjects.draft(mx.array([[1, 2]])).shape == (1, 2, 50)
    assert subjects.draft.layers[1] is subjects.guided.base.layers[1]
    assert weight_bytes(subjects.draft, subjects.guided.base) == weight_bytes(subjects.guided.base)
