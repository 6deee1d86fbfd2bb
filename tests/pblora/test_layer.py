import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from parm_mlx.errors import InputError, PreferenceError
from parm_mlx.pblora import PBLoRAConfig, PBLoRALinear
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Preferences, conditioned
from parm_mlx.pblora.targets import linear_dims

CONFIG = PBLoRAConfig(objectives=("a", "b"), r1=3, r2=2, scale=1.5)
QUANTISATIONS = [("affine", bits, 32) for bits in (2, 3, 4, 5, 6, 8)] + [
    ("mxfp4", 4, 32),
    ("nvfp4", 4, 16),
    ("mxfp8", 8, 32),
]


def random_layer(linear: nn.Module, config: PBLoRAConfig = CONFIG) -> PBLoRALinear:
    layer = PBLoRALinear(linear, config)
    for key in ("a", "b", "w1", "w2"):
        layer[key] = mx.random.normal(layer[key].shape)
    return layer


def test_the_update_by_hand() -> None:
    """One input, one output, r1 = r2 = 1: A = [2; 3], B = [5 7], W1 = 11, W2 = [13; 17], s = 2, α = (1/4, 3/4).

    ΔW = 2 · (5 · 11 · 2 + 7 · (13/4 + 51/4) · 3) = 2 · (110 + 336) = 892, so y = (1 + 892) · x with W = 1.
    """
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = mx.array([[1.0]])
    layer = PBLoRALinear(linear, PBLoRAConfig(objectives=("a", "b"), r1=1, r2=1, scale=2.0))
    layer.a, layer.b = mx.array([[2.0], [3.0]]), mx.array([[5.0, 7.0]])
    layer.w1, layer.w2 = mx.array([[11.0]]), mx.array([[13.0], [17.0]])
    alpha = mx.array([0.25, 0.75])
    assert layer.delta(alpha).item() == 892
    with conditioned(Preferences(alpha)):
        assert layer(mx.array([[[2.0]]])).item() == 893 * 2


def test_w2_is_read_row_by_row() -> None:
    """W2(α) = reshape(αᵀ W2, (2, 2)): at α = (1, 0) the first row of W2, 1 2 / 3 4."""
    layer = PBLoRALinear(nn.Linear(4, 4), PBLoRAConfig(objectives=("a", "b"), r1=1, r2=2))
    layer.w2 = mx.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    core = layer.core(mx.array([[1.0, 0.0]]))[0]
    assert core[1:, 1:].tolist() == [[1, 2], [3, 4]]
    assert core[0, 1:].tolist() == [0, 0]
    assert core[1:, 0].tolist() == [0, 0]


def test_a_fresh_adapter_changes_nothing_and_starts_in_its_ranges() -> None:
    layer = PBLoRALinear(nn.Linear(16, 8), PBLoRAConfig(objectives=("a", "b"), r1=4, r2=2))
    x = mx.random.normal((1, 3, 16))
    with conditioned(Preferences(mx.array([0.5, 0.5]))):
        assert mx.array_equal(layer(x), layer.linear(x))
    assert [layer[key].shape for key in ("a", "b", "w1", "w2")] == [(6, 16), (8, 6), (4, 4), (2, 4)]
    for key, limit in (("a", 1 / 4), ("w1", 1 / 2), ("w2", 1 / 2)):
        assert 0.5 * limit < mx.abs(layer[key]).max().item() <= limit


def test_every_row_keeps_its_own_preference_bound_or_not() -> None:
    mx.random.seed(0)
    layer = random_layer(nn.Linear(16, 8))
    alphas = mx.array([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    x = mx.random.normal((3, 5, 16))
    expected = mx.stack([layer.linear(row) + row @ layer.delta(alpha).T for row, alpha in zip(x, alphas, strict=True)])
    for conditioning in (Preferences(alphas), BoundPreferences([layer], alphas)):
        with conditioned(conditioning):
            assert mx.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    with conditioned(BoundPreferences([layer], alphas[1:2])):
        assert mx.allclose(layer(x[1:2]), expected[1:2], rtol=1e-4, atol=1e-4)


def test_fewer_preferences_than_rows_are_taken_in_turns() -> None:
    """Both responses of two pairs: rows 0 and 2 are of the first pair, rows 1 and 3 of the second."""
    layer = random_layer(nn.Linear(16, 8))
    alphas = mx.array([[1.0, 0.0], [0.3, 0.7]])
    x = mx.random.normal((4, 3, 16))
    with conditioned(Preferences(alphas)):
        y = layer(x)
    for row, alpha in zip(range(4), [*alphas, *alphas], strict=True):
        assert mx.allclose(y[row], layer.linear(x[row]) + x[row] @ layer.delta(alpha).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "bits", "group_size"), QUANTISATIONS)
def test_quantised_layers_of_every_width_and_mode(mode: str, bits: int, group_size: int) -> None:
    mx.random.seed(0)
    linear = nn.QuantizedLinear.from_linear(nn.Linear(64, 32, bias=False), group_size, bits, mode=mode)
    assert linear_dims(linear) == (32, 64)
    layer = random_layer(linear)
    alpha = mx.array([0.3, 0.7])
    x = mx.random.normal((1, 4, 64))
    with conditioned(Preferences(alpha)):
        assert mx.allclose(layer(x), linear(x) + x @ layer.delta(alpha).T, rtol=1e-4, atol=1e-4)
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    weight = mx.dequantize(linear.weight, linear.scales, linear.get("biases"), **settings)
    rounding = 1e-6 if weight.dtype == mx.float32 else 2**-8
    assert mx.allclose(layer.fuse(alpha, dequantize=True).weight, weight + layer.delta(alpha), rtol=rounding)
    with pytest.raises(InputError, match="round small updates away"):
        layer.fuse(alpha)


def test_fusing_keeps_the_bias() -> None:
    mx.random.seed(0)
    layer = random_layer(nn.Linear(16, 8))
    alpha = mx.array([0.3, 0.7])
    x = mx.random.normal((1, 4, 16))
    with conditioned(Preferences(alpha)):
        assert mx.allclose(layer.fuse(alpha)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_sixteen_bit_layers_stay_sixteen_bit() -> None:
    layer = random_layer(nn.Linear(16, 8))
    layer.linear.set_dtype(mx.bfloat16)
    x = mx.random.normal((1, 2, 16)).astype(mx.bfloat16)
    with conditioned(Preferences(mx.array([1.0, 0.0]))):
        assert layer(x).dtype == mx.bfloat16


def test_gradients_reach_all_four_tensors_and_match_finite_differences() -> None:
    mx.random.seed(0)
    layer = random_layer(nn.Linear(6, 5))
    layer.linear.freeze()
    alpha, x, weight = mx.array([[0.3, 0.7]]), mx.random.normal((1, 3, 6)), mx.random.normal((1, 3, 5))

    def loss() -> mx.array:
        with conditioned(Preferences(alpha)):
            return (layer(x) * weight).sum()

    _, gradients = nn.value_and_grad(layer, loss)()
    assert {key for key, value in gradients.items() if not isinstance(value, dict)} == {"a", "b", "w1", "w2"}
    assert gradients["linear"] == {}
    for key in ("a", "b", "w1", "w2"):
        tensor, step = layer[key], 1e-2
        direction = mx.random.normal(tensor.shape)
        layer[key] = tensor + step * direction
        above = loss().item()
        layer[key] = tensor - step * direction
        below = loss().item()
        layer[key] = tensor
        slope = (gradients[key] * direction).sum().item()
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-3), key


def test_plain_lora_is_the_case_of_one_objective_and_no_second_rank() -> None:
    mx.random.seed(0)
    layer = random_layer(nn.Linear(8, 4), PBLoRAConfig(objectives=("only",), r1=2, r2=0, scale=0.5))
    layer.w1 = mx.eye(2)
    np.testing.assert_allclose(layer.delta(mx.array([1.0])), 0.5 * layer.b @ layer.a, rtol=1e-6)


def test_a_layer_without_a_preference_says_so() -> None:
    with pytest.raises(PreferenceError, match="without a preference"):
        random_layer(nn.Linear(4, 4))(mx.zeros((1, 1, 4)))
