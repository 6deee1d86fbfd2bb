"""Models without their output layer: the same hidden states, in every family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma2
from mlx_lm.utils import save_model
from tiny import COMMON, FAMILIES, VOCABULARY, tiny_model

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import attention_windows, config_rows, embedding_rows, load_backbone, load_weights_and_tokenizer

IDS = mx.array([[5, 17, 42, 7, 30], [8, 9, 10, 11, 12]])


@pytest.fixture
def saved(official: Path, tmp_path: Path) -> Callable[[str], tuple[Any, Path]]:
    """A tiny causal LM of a family, and its directory."""

    def save(family: str) -> tuple[Any, Path]:
        model = tiny_model(family)
        save_model(tmp_path, model)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **FAMILIES[family]}))
        for file in (official / "arm_base").glob("*token*"):
            shutil.copy(file, tmp_path)
        return model, tmp_path

    return save


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_hidden_states_of_every_family(saved: Callable[[str], tuple[Any, Path]], family: str) -> None:
    model, path = saved(family)
    backbone, _, found = load_backbone(path)
    assert found == {}
    assert not {"lm_head", "embed_out"} & {name.split(".")[-2] for name, _ in tree_flatten(backbone.parameters())}
    states = backbone(IDS)
    if family == "gpt_neox":
        assert mx.allclose(model.model.embed_out(states), model(IDS), atol=1e-5)
    else:
        text = model.language_model if family == "llama4" else model
        trunk = text.backbone if family == "mamba" else text.model
        assert mx.allclose(states, trunk(IDS, cache=None), atol=1e-5)
    if attention_windows(backbone) is not None:
        padded = mx.concatenate([IDS[:1], mx.zeros((1, 4), dtype=IDS.dtype)], axis=1)
        assert mx.allclose(backbone(padded)[:, :5], states[:1], atol=1e-5), "what is padded to the right is not seen"


def test_tensors_of_a_head_are_set_aside_and_others_refused(saved: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = saved("llama")
    tensors = {"score.weight": mx.ones((1, 64)), "other.weight": mx.ones((1, 64))}
    mx.save_safetensors(str(path / "model-more.safetensors"), tensors)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"other\.weight"):
        load_backbone(path, ["score"])
    _, _, found = load_backbone(path, ["score", "other"])
    assert sorted(found) == ["other.weight", "score.weight"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_base_of_rotary_positions_where_transformers_5_writes_it(
    saved: Callable[[str], tuple[Any, Path]], family: str
) -> None:
    """The same as rope_theta and rope_scaling at the top, and not the same as without."""
    _, path = saved(family)
    file = path / "config.json"
    plain = {key: value for key, value in json.loads(file.read_text()).items() if "rope" not in key}
    scaling = {"rope_type": "linear", "factor": 4.0}
    found = []
    for rope in (
        {"rope_theta": 500.0, "rope_scaling": scaling},
        {"rope_parameters": {"rope_theta": 500.0, **scaling}},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {},
    ):
        file.write_text(json.dumps({**plain, **rope}))
        model, _ = load_weights_and_tokenizer(path)
        found.append(model(IDS))
    assert mx.array_equal(found[0], found[1])
    assert not mx.allclose(found[1], found[2], atol=1e-4)
    assert not mx.allclose(found[2], found[3], atol=1e-4)


def test_what_mlx_lm_cannot_compute_is_one_line(official: Path, tmp_path: Path) -> None:
    """A Gemma 2 whose attention is not capped loads, but mlx-lm divides by the cap."""
    sizes = COMMON | {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": None}
    save_model(tmp_path, gemma2.Model(gemma2.ModelArgs.from_dict({"model_type": "gemma2", **sizes})))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", **sizes}))
    for file in (official / "arm_base").glob("*token*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ModelError, match="attn_logit_softcapping null, and mlx-lm"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_rows_of_the_embedding_of_every_family(saved: Callable[[str], tuple[Any, Path]], family: str) -> None:
    """As many as the vocabulary, which is neither the number of positions nor that of any other table."""
    _, path = saved(family)
    assert embedding_rows(load_backbone(path)[0]) == config_rows(path) == VOCABULARY
    if family == "llama":
        assert embedding_rows(tiny_model(family, bits=4)) == VOCABULARY
        (path / "config.json").write_text(json.dumps({"model_type": family}))
        assert config_rows(path) is None
