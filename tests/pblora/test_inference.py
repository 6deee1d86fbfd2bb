"""α bound for generation: the same numbers as the layer's ΔW(α), whichever way it is computed."""

from threading import Thread

import mlx.core as mx
import mlx.nn as nn
import pytest

from parm_mlx.pblora import PBLoRAConfig, PBLoRALinear
from parm_mlx.pblora.inference import BoundPreferences, join
from parm_mlx.pblora.layer import conditioned

CONFIG = PBLoRAConfig(objectives=("a", "b"), r1=3, r2=2, scale=1.5)
ALPHAS = {"one": [[0.3, 0.7]], "equal": [[0.3, 0.7]] * 3, "mixed": [[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]]}


def layers(*outs: int, reads: tuple[object, ...] | None = (0, "attention")) -> list[PBLoRALinear]:
    mx.random.seed(0)
    made = [PBLoRALinear(nn.Linear(16, out), CONFIG, index, reads) for index, out in enumerate(outs)]
    for layer in made:
        for key in layer.tensors:
            layer[key] = mx.random.normal(layer[key].shape)
    return made


def expected(layer: PBLoRALinear, x: mx.array, alphas: list[list[float]], paired: bool) -> mx.array:
    """W x + ΔW(α) x row by row; W x alone in the plain rows of pairs."""
    rows = []
    for i, row in enumerate(x):
        plain = paired and i % 2 == 0
        alpha = mx.array(alphas[i // 2 if paired else i])
        rows.append(layer.linear(row) if plain else layer.linear(row) + row @ layer.delta(alpha).T)
    return mx.stack(rows)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("reads", [None, (0, "attention")])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_every_row_has_its_update(
    length: int, alphas: list[list[float]], paired: bool, reads: tuple[object, ...] | None
) -> None:
    q, k, v = layers(8, 4, 4, reads=reads)
    x = mx.random.normal((len(alphas) * (1 + paired), length, 16))
    with conditioned(BoundPreferences([q, k, v], mx.array(alphas), paired)):
        for layer in (q, k, v):
            assert mx.allclose(layer(x), expected(layer, x, alphas, paired), rtol=1e-4, atol=1e-4)


def test_layers_of_one_name_may_read_different_inputs_after_all() -> None:
    """In any order, some of them several times or not at all."""
    q, k, v = layers(8, 4, 4)
    x = [mx.random.normal((1, 2, 16)) for _ in range(3)]
    alphas = ALPHAS["one"]
    with conditioned(BoundPreferences([q, k, v], mx.array(alphas))):
        for layer, i in ((v, 0), (q, 1), (q, 1), (k, 2), (v, 1), (v, 0)):
            assert mx.allclose(layer(x[i]), expected(layer, x[i], alphas, False), rtol=1e-4, atol=1e-4)


def test_one_product_with_a_serves_all_layers_that_read_one_input() -> None:
    """The graph of q, k and v has one product with A; those with W and B, three each, add a bias or y as they go."""
    made = layers(8, 4, 4)
    x = mx.random.normal((2, 1, 16))
    bound = BoundPreferences(made, mx.array(ALPHAS["one"]), paired=True)
    with conditioned(bound):
        mx.eval([layer(x) for layer in made])
        names: list[str] = []

        def collect(node: dict[str, object]) -> None:
            if node["type"] == "primitive":
                names.append(str(node["name"]))

        mx.export_function(collect, lambda x: [layer(x) for layer in made], x)
    assert (names.count("Matmul"), names.count("AddMM")) == (1, 3 + 3)


def test_a_is_joined_once_for_every_alpha_and_again_after_a_change() -> None:
    made = layers(8, 4, 4)
    whole = join(made, mx.float32)
    x = mx.random.normal((1, 2, 16))
    for alpha in ([1.0, 0.0], [0.0, 1.0]):
        with conditioned(BoundPreferences(made, mx.array([alpha]))):
            made[0](x)
    assert join(made, mx.float32) is whole
    made[1].a = mx.zeros_like(made[1].a)
    joined = join(made, mx.float32)
    assert joined.a.tolist() == mx.concatenate([layer.a for layer in made]).T.tolist()
    assert [b.tolist() for b in joined.b] == [layer.b.T.tolist() for layer in made]


@pytest.mark.parametrize(("first", "second"), [("one", "mixed"), ("mixed", "one")])
def test_each_thread_may_bind_other_preferences(first: str, second: str) -> None:
    """What layers keep of their joined adapters is whole, whichever form needed it first."""
    made = layers(8, 4, 4)
    x = {name: mx.random.normal((len(ALPHAS[name]), 1, 16)) for name in (first, second)}
    mx.eval(x, [layer.parameters() for layer in made])

    def run(name: str) -> None:
        with conditioned(BoundPreferences(made, mx.array(ALPHAS[name]))):
            found.append(made[0](x[name]))
            mx.eval(found[-1])

    found: list[mx.array] = []
    for name in (first, second):
        thread = Thread(target=run, args=(name,))
        thread.start()
        thread.join()
    assert len(found) == 2
    for y, name in zip(found, (first, second), strict=True):
        assert mx.allclose(y, expected(made[0], x[name], ALPHAS[name], False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alphas", [ALPHAS["one"], ALPHAS["mixed"]])
def test_what_one_thread_has_bound_another_uses(alphas: list[list[float]]) -> None:
    """Of the first pass only q is evaluated, as the keys and values of a prefilled cache are; the second needs all."""
    q, k, v = layers(8, 4, 4)
    for layer in (q, k, v):
        layer.linear.set_dtype(mx.bfloat16)
    x = mx.random.normal((len(alphas), 2, 16)).astype(mx.bfloat16)
    bound = BoundPreferences([q, k, v], mx.array(alphas))
    mx.eval(x, [layer.parameters() for layer in (q, k, v)])

    def prefill() -> None:
        with conditioned(bound):
            mx.eval(q(x))

    other = Thread(target=prefill)
    other.start()
    other.join()
    with conditioned(bound):
        for layer in (q, k, v):
            y, whole = layer(x).astype(mx.float32), expected(layer, x, alphas, False).astype(mx.float32)
            assert mx.abs(y - whole).max() < 0.02 * mx.abs(whole).max()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
def test_sixteen_bits_stay_sixteen_bits(dtype: mx.Dtype, alphas: list[list[float]]) -> None:
    """Adapters are float32; what they add to 16-bit layers is within 2 % of the largest value."""
    (layer,) = layers(8)
    x = mx.random.normal((len(alphas), 5, 16))
    whole = expected(layer, x, alphas, False)
    layer.linear.set_dtype(dtype)
    with conditioned(BoundPreferences([layer], mx.array(alphas))):
        y = layer(x.astype(dtype))
    assert y.dtype == dtype
    assert mx.abs(y.astype(mx.float32) - whole).max() < 0.02 * mx.abs(whole).max()
