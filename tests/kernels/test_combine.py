import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.kernels import combine
from parm_mlx.kernels.combine import combine_logits, guided_logprobs_ops


def test_a_row_by_hand() -> None:
    """Weights 1 and 3 times 1 and 2 to the power 1/β = 2: 1 and 12, so 1/13 and 12/13."""
    base, guide = mx.log(mx.array([1.0, 3.0])), mx.log(mx.array([1.0, 2.0]))
    assert mx.softmax(combine_logits(base, guide, 2.0)).tolist() == pytest.approx([1 / 13, 12 / 13])
    rows = guided_logprobs_ops(mx.stack([base, base]), mx.stack([guide, guide]), mx.array([2.0, 0.0]))
    assert mx.exp(rows).tolist() == [pytest.approx([1 / 13, 12 / 13]), pytest.approx([1 / 4, 3 / 4])]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize(("v_base", "v_guide"), [(11, 11), (11, 14), (14, 11)])
@pytest.mark.parametrize("beta", [1, 0.7])
def test_values_are_those_of_float64_over_the_smaller_vocabulary(
    dtype: mx.Dtype, v_base: int, v_guide: int, beta: float
) -> None:
    mx.random.seed(0)
    base, guide = (mx.random.normal((2, 3, v)).astype(dtype) for v in (v_base, v_guide))
    rows = [np.array(z.astype(mx.float32)).astype(np.float64)[..., :11] for z in (base, guide)]
    found = combine_logits(base, guide, 1 / beta)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), rows[0] + rows[1] / beta, rtol=1e-5, atol=1e-5)


def test_shapes_around_the_kernel(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch, replaced by its twin, gets rows; the result has the leading axes of the logits."""
    seen = []

    def launch(base: mx.array, guide: mx.array, scale: mx.array) -> mx.array:
        seen.append((base.shape, guide.shape, scale.tolist()))
        return guided_logprobs_ops(base, guide, scale)

    monkeypatch.setenv("PARM_MLX_KERNELS", "on")
    monkeypatch.setattr(combine, "launch", launch)
    base, guide = mx.random.normal((2, 3, 8)), mx.random.normal((2, 3, 7))
    found = combine_logits(base, guide, 2.0)
    assert seen == [((6, 8), (6, 7), [2.0] * 6)]
    expected = np.array(base)[..., :7] + 2 * np.array(guide)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-5)
