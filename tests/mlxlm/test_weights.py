"""Every tensor that counts reaches the model, from the files that count, and holds numbers."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import VOCABULARY

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import check_finite_files, load_backbone, load_weights_and_tokenizer
from parm_mlx.mlxlm.weights import check_finite

IDS = mx.array([[5, 17, 42, 7, 30]])
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

Write = Callable[..., Path]


def logits(path: Path) -> mx.array:
    return load_weights_and_tokenizer(path)[0](IDS)


def head(scale: float = 1.0) -> mx.array:
    return scale * mx.random.normal((VOCABULARY, 64), key=mx.random.key(7))


def split(path: Path, names: list[str], index: bool = True) -> dict[str, str]:
    """Splits a model into files of these names."""
    tensors: Any = mx.load(str(path / "model.safetensors"))
    mx.eval(tensors)
    (path / "model.safetensors").unlink()
    keys = sorted(tensors)
    weight_map = {key: names[i % len(names)] for i, key in enumerate(keys)}
    for name in names:
        part = {key: tensors[key] for key in keys if weight_map[key] == name}
        mx.save_safetensors(str(path / name), part, metadata={"format": "pt"})
    if index:
        write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_an_output_layer_counts_where_the_config_does_not_say_that_it_is_tied(write_model: Write, family: str) -> None:
    """mlx-lm ties by default and would drop it; transformers does not tie these families."""
    sizes = {"tie_word_embeddings": False}
    said = write_model("said", family, tensors={HEAD: head()}, sizes=sizes)
    unsaid = write_model("unsaid", family, tensors={HEAD: head()}, sizes=sizes)
    config = json.loads((unsaid / "config.json").read_text())
    del config["tie_word_embeddings"]
    (unsaid / "config.json").write_text(json.dumps(config))
    assert mx.array_equal(logits(said), logits(unsaid))


def test_an_output_layer_that_the_config_ties_must_be_the_embedding(write_model: Write) -> None:
    tied = {"tie_word_embeddings": True}
    alone = write_model("alone", sizes=tied)
    embedding = mx.load(str(alone / "model.safetensors"))[EMBEDDING]  # type: ignore[index]
    again = write_model("again", sizes=tied, tensors={HEAD: embedding})
    other = write_model("other", sizes=tied, tensors={HEAD: head()})
    assert mx.array_equal(logits(alone), logits(again))
    with pytest.raises(ModelError, match=rf"tie_word_embeddings is set, but {HEAD} is not the embedding"):
        logits(other)
    load_backbone(other)  # a model without its output layer


def test_an_output_layer_that_nothing_ties_must_be_there(write_model: Write) -> None:
    path = write_model("headless", sizes={"tie_word_embeddings": False}, tensors={HEAD: None})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "tie_word_embeddings"}))
    with pytest.raises(ModelError, match=rf"Missing 1 parameters: {HEAD}") as caught:
        logits(path)
    assert "tie_word_embeddings" in str(caught.value.hint)


def test_tensors_that_nothing_takes_are_listed(write_model: Write) -> None:
    extra = {"model.layers.0.self_attn.gate.weight": mx.ones((2, 2)), "adapter.weight": mx.ones(2)}
    with pytest.raises(ModelError, match=r"adapter\.weight.*gate\.weight"):
        logits(write_model("extra", tensors=extra))


def test_tensors_that_a_family_drops_are_listed(write_model: Write) -> None:
    """Llama's sanitize drops by name: what is called as a buffer may go, a layer may not."""
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": mx.ones(8),
        "model.embed_tokens.position_ids": mx.arange(4),
    }
    plain, more = write_model("plain", "llama"), write_model("more", "llama", tensors=buffers)
    assert mx.array_equal(logits(plain), logits(more))


def test_a_tensor_left_at_its_initial_value_is_an_error(write_model: Write) -> None:
    with pytest.raises(ModelError, match=r"Missing 1 parameters: model\.norm\.weight"):
        logits(write_model("short", tensors={"model.norm.weight": None}))


def test_experts_that_a_family_stacks_count_as_taken(write_model: Write) -> None:
    """Mixtral as transformers writes it: one tensor for each expert, which sanitize stacks; one too many is left."""
    stacked = write_model("stacked", "mixtral")
    tensors: dict[str, Any] = dict(mx.load(str(stacked / "model.safetensors")))  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name in [name for name in tensors if ".switch_mlp." in name]:
        prefix, _, leaf = name.partition(".switch_mlp.")
        number = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}[leaf.split(".")[0]]
        changes[name] = None
        changes |= {f"{prefix}.experts.{e}.{number}.weight": tensors[name][e] for e in range(2)}
    single = write_model("single", "mixtral", tensors=changes)
    assert mx.array_equal(logits(stacked), logits(single))
    extra = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    with pytest.raises(ModelError, match=extra):
        logits(write_model("third", "mixtral", tensors=changes | {extra: mx.ones((64, 64))}))


@pytest.mark.parametrize("names", [["model-1.safetensors", "model-2.safetensors"], ["a.safetensors", "b.safetensors"]])
def test_an_index_names_the_files_whatever_they_are_called(write_model: Write, names: list[str]) -> None:
    whole, parts = write_model("whole"), write_model("parts")
    split(parts, names)
    stale = {name: mx.zeros_like(value) for name, value in mx.load(str(whole / "model.safetensors")).items()}  # type: ignore[union-attr]
    mx.save_safetensors(str(parts / "model.safetensors"), stale)
    mx.save_safetensors(str(parts / "model-old.safetensors"), {"unheard.of": mx.zeros(3)})
    assert mx.array_equal(logits(whole), logits(parts))


def test_an_index_says_which_of_two_copies_counts(write_model: Write) -> None:
    whole, parts = write_model("whole"), write_model("parts")
    weight_map = split(parts, ["one.safetensors", "two.safetensors"])
    other = next(name for name in ("one.safetensors", "two.safetensors") if name != weight_map[EMBEDDING])
    held = dict(mx.load(str(parts / other)))  # type: ignore[arg-type]
    mx.eval(held)
    mx.save_safetensors(str(parts / other), held | {EMBEDDING: mx.zeros((VOCABULARY, 64))})
    assert mx.array_equal(logits(whole), logits(parts))


def test_missing_files_are_named(write_model: Write) -> None:
    names = [f"part-{i}.safetensors" for i in (1, 2, 3)]
    indexed, numbered = write_model("indexed"), write_model("numbered")
    split(indexed, names)
    (indexed / names[1]).unlink()
    split(numbered, [f"model-{i}-of-3.safetensors" for i in (1, 2, 3)], index=False)
    assert logits(numbered).shape == (1, 5, VOCABULARY)
    (numbered / "model-3-of-3.safetensors").unlink()
    for path, name in ((indexed, r"part-2\.safetensors"), (numbered, r"model-3-of-3\.safetensors")):
        with pytest.raises(ModelError, match=rf"incomplete: {name} missing"):
            logits(path)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (
            {EMBEDDING: "../whole/model.safetensors"},
            r"names \.\./whole/model\.safetensors, which is not a file of this",
        ),
        ({EMBEDDING: "/etc/model.safetensors"}, "which is not a file of this directory"),
        ({EMBEDDING: "pytorch_model.bin"}, r"names pytorch_model\.bin, which is not a safetensors file"),
        ({"unheard.of": "model.safetensors"}, r"says that model\.safetensors holds unheard\.of; it does not"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(write_model: Write, weight_map: Any, reason: str) -> None:
    path = write_model("m")
    write_index(path, weight_map)
    with pytest.raises(ModelError, match=reason):
        logits(path)


def test_without_an_index_no_tensor_may_be_in_two_files(write_model: Write) -> None:
    path = write_model("m")
    mx.save_safetensors(str(path / "model-copy.safetensors"), {EMBEDDING: mx.zeros((VOCABULARY, 64))})
    with pytest.raises(ModelError, match=rf"{EMBEDDING} in several files, and no index says which counts"):
        logits(path)


@pytest.mark.parametrize("name", ["x[1]", "a*b", "what?", "ünï ☕", "{0}"])
def test_a_directory_may_have_any_name(write_model: Write, name: str) -> None:
    path, neighbour = write_model(name), write_model("x1")
    mx.save_safetensors(str(neighbour / "model.safetensors"), {EMBEDDING: mx.zeros((2, 2))})
    assert logits(path).shape == (1, 5, VOCABULARY)
    assert load_backbone(path)[0](IDS).shape == (1, 5, 64)


def add_raw(file: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """Puts a tensor of a type that MLX does not write into a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body + data)


def test_eight_bit_floats_without_their_scales_are_not_weights(write_model: Write) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = write_model("fp8", tensors={name: None})
    add_raw(path / "model.safetensors", name, "F8_E4M3", (64, 64), bytes(64 * 64))
    with pytest.raises(ModelError, match=rf"stores {name} as 8-bit floats or integers"):
        logits(path)


def test_integers_are_not_weights(write_model: Write) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(ModelError, match=rf"stores {name} as"):
        logits(write_model("int8", tensors={name: mx.ones((64, 64), dtype=mx.int8)}))


def test_doubles_are_refused_by_name(write_model: Write) -> None:
    path = write_model("f64", tensors={"model.norm.weight": None})
    add_raw(path / "model.safetensors", "model.norm.weight", "F64", (64,), struct.pack("<64d", *[1.0] * 64))
    with pytest.raises(ModelError, match=r"type F64, which MLX does not read: model\.norm\.weight"):
        logits(path)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_numbers_that_are_not_finite_are_refused(write_model: Write, number: float, dtype: mx.Dtype) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    values = mx.ones((32, 64)).astype(dtype)
    values[3, 5] = number
    path = write_model("m", tensors={name: values})
    with pytest.raises(ModelError, match=rf"not finite \(NaN or infinity\): {name}$"):
        logits(path)
    load_weights_and_tokenizer(path, lazy=True)
    with pytest.raises(ModelError, match=rf"not finite \(NaN or infinity\): {name}$"):
        check_finite_files(path)


def test_finite_numbers_with_an_infinite_sum_are_finite() -> None:
    """4 x 60000 is more than float16 holds."""
    check_finite(Path("m"), {"w": mx.full((2, 2), 60000.0).astype(mx.float16), "n": mx.array([2**31 - 1])})


def test_scales_of_quantised_weights_are_checked(write_model: Write) -> None:
    quantised = {"quantization": {"group_size": 32, "bits": 4}}
    name = "model.layers.0.mlp.up_proj"
    weight, scales, biases = mx.quantize(mx.random.normal((64, 64)), 32, 4)
    parts = {f"{name}.{leaf}": value for leaf, value in (("weight", weight), ("scales", scales), ("biases", biases))}
    assert logits(write_model("good", config=quantised, tensors=parts)).shape == (1, 5, VOCABULARY)
    parts[f"{name}.biases"] = biases * math.nan
    with pytest.raises(ModelError, match=rf"{name}\.biases"):
        logits(write_model("bad", config=quantised, tensors=parts))


def test_numbers_that_the_type_cannot_hold_are_named(write_model: Write) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    path = write_model("m", tensors={name: mx.full((64, 64), 7e4)})
    check_finite_files(path)
    check_finite_files(path, "bfloat16")
    with pytest.raises(ModelError, match=rf"numbers that float16 cannot hold: {name}"):
        check_finite_files(path, "float16")


def test_loaded_models_are_of_mlx_lm_itself(write_model: Write) -> None:
    model, _ = load_weights_and_tokenizer(write_model("m"))
    assert type(model).__module__ == "mlx_lm.models.qwen2"
    assert all(name in dict(tree_flatten(model.parameters())) for name in (EMBEDDING, "model.norm.weight"))


def test_a_name_that_counts_billions_of_shards_is_refused_at_once(write_model: Callable[..., Path]) -> None:
    path = write_model("m")
    (path / "model.safetensors").rename(path / "model-00001-of-99999999999.safetensors")
    with pytest.raises(ModelError, match=r"incomplete: model-00002-of-99999999999\.safetensors, .* missing"):
        load_weights_and_tokenizer(path)
