"""Reward models to MLX."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from parm_mlx.convert.detect import detect
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.convert.run import Request, convert
from parm_mlx.errors import InputError, ModelError
from parm_mlx.mlxlm import load_backbone, load_weights_and_tokenizer

Copy = Callable[..., Path]


def run(source: Path, out: Path, **options: Any) -> list[str]:
    notes: list[str] = []
    convert_model(detect(source, options.pop("name", None)), out, **{"note": notes.append, **options})
    return notes


def settings(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "reward.json").read_text())
    return content


def head(out: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(out / "reward_head.safetensors")))


def change(folder: Path, **values: Any) -> Path:
    content = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_what_a_classifier_becomes(reward_source: Copy, tmp_path: Path) -> None:
    notes = run(reward_source("qwen2-2", "my-reward"), tmp_path / "out")
    assert notes == [
        "taken for a reward by its name; --lower-is-better says otherwise",
        "outputs harmless, helpful; higher is better",
    ]
    assert settings(tmp_path / "out") == {
        "format": 1,
        "kind": "sequence-classification",
        "labels": ["harmless", "helpful"],
        "lower_is_better": False,
        "chat_template": None,
        "pad_token_id": 2,
    }
    original = mx.load(str(tmp_path / "my-reward" / "model.safetensors"))["score.weight"]
    assert head(tmp_path / "out").keys() == {"weight"}
    assert mx.array_equal(head(tmp_path / "out")["weight"], original.astype(mx.float32))


def test_what_a_score_model_becomes(reward_source: Copy, tmp_path: Path) -> None:
    """Beaver's normaliser, which is switched off in its config, is left behind."""
    notes = run(reward_source("beaver-cost"), tmp_path / "out")
    assert notes == [
        "taken for a cost by its name; --higher-is-better says otherwise",
        "outputs cost; lower is better, so scores are negated",
    ]
    assert settings(tmp_path / "out") == {
        "format": 1,
        "kind": "score",
        "labels": ["cost"],
        "lower_is_better": True,
        "chat_template": "beaver",
        "pad_token_id": None,
    }
    assert {name: value.shape for name, value in head(tmp_path / "out").items()} == {"weight": (1, 32), "bias": (1,)}


@pytest.mark.parametrize(
    ("name", "score_type", "given", "expected", "note"),
    [
        ("beaver-cost", None, None, True, "taken for a cost by its name"),
        ("beaver-reward", None, None, False, "taken for a reward by its name"),
        ("owner/Beaver-Cost", "reward", None, True, "taken for a cost by its name"),
        ("costs/beaver", None, None, False, "neither its name nor its config says cost or reward"),
        ("beaver", "cost", None, True, "taken for a cost by its config"),
        ("beaver", "reward", None, False, "taken for a reward by its config"),
        ("reward-or-cost", None, None, False, "neither its name nor its config"),
        ("beaver-cost", "cost", False, False, "outputs reward; higher is better"),
        ("beaver-reward", "reward", True, True, "outputs cost; lower is better"),
    ],
)
def test_where_the_sign_comes_from(
    reward_source: Copy,
    tmp_path: Path,
    name: str,
    score_type: str | None,
    given: bool | None,
    expected: bool,
    note: str,
) -> None:
    source = change(reward_source("beaver-cost", "model"), score_type=score_type)
    notes = run(source, tmp_path / "out", name=name, lower_is_better=given)
    assert settings(tmp_path / "out")["lower_is_better"] is expected
    assert notes[0].startswith(note)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_type_is_the_backbones(reward_source: Copy, tmp_path: Path, name: str) -> None:
    run(reward_source("llama-1"), tmp_path / "out", dtype=name)
    model, _, _ = load_backbone(tmp_path / "out")
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {getattr(mx, name)}
    assert head(tmp_path / "out")["weight"].dtype == mx.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == name


def test_quantisation_leaves_the_head_alone(reward_source: Copy, tmp_path: Path) -> None:
    run(reward_source("llama-1"), tmp_path / "plain")
    run(tmp_path / "llama-1", tmp_path / "q", quantization=Quantization("affine", 8, 32))
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]["bits"] == 8
    assert mx.array_equal(head(tmp_path / "q")["weight"], head(tmp_path / "plain")["weight"])
    ids = mx.array([[1, 50, 60, 70]])
    plain, quantised = (load_backbone(tmp_path / name)[0](ids) for name in ("plain", "q"))
    distance = float(mx.abs(plain - quantised).max())
    assert 0 < distance < 0.1 * float(mx.abs(plain).max())


def test_a_converted_reward_model_is_no_causal_lm(reward_source: Copy, tmp_path: Path) -> None:
    run(reward_source("llama-1"), tmp_path / "out")
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_weights_and_tokenizer(tmp_path / "out")


def spoil_pickled(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def spoil_head(source: Path) -> None:
    rename(source, {"score.weight": "classifier.weight"})


def spoil_score(source: Path) -> None:
    rename(source, {"score.weight": "score.0.weight"})


def spoil_backbone(source: Path) -> None:
    rename(source, {"model.norm.weight": None})


def spoil_normaliser(source: Path) -> None:
    change(source, do_normalize=True)


def spoil_family(source: Path) -> None:
    change(source, model_type="bert", architectures=["BertForSequenceClassification"])


def spoil_rope(source: Path) -> None:
    change(source, model_type="glm", rope_parameters={"partial_rotary_factor": 0.5})


def rename(source: Path, names: dict[str, str | None]) -> None:
    file = source / "model.safetensors"
    tensors = dict(mx.load(str(file)))
    mx.eval(list(tensors.values()))
    renamed = {names.get(name, name): value for name, value in tensors.items()}
    mx.save_safetensors(str(file), {name: value for name, value in renamed.items() if name}, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (spoil_pickled, r"found pytorch_model\.bin\): pickled weights can run any code", "docs/rewards.md"),
        (spoil_head, r"classifier\.weight", "hf:"),
        (spoil_score, r"no linear score head: 0\.weight", None),
        (spoil_backbone, r"model\.norm\.weight", "hf:"),
        (spoil_normaliser, "normalises its scores", None),
        (spoil_rope, "does not compute positions as rope_parameters, rope_theta, partial_rotary_factor", "hf:"),
        (spoil_family, "Model type bert not supported", "hf:"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_error(
    reward_source: Copy, tmp_path: Path, spoil: Callable[[Path], None], message: str, hint: str | None
) -> None:
    source = reward_source("llama-1")
    spoil(source)
    with pytest.raises(ModelError, match=message) as caught:
        run(source, tmp_path / "out")
    assert (hint or "") in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_what_is_quantised_is_not_quantised_again(reward_source: Copy, tmp_path: Path) -> None:
    source = change(reward_source("llama-1"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="is quantised already"):
        run(source, tmp_path / "out", quantization=Quantization("affine", 8, 32))


def test_what_is_ours_already_is_not_converted(reward_source: Copy, tmp_path: Path) -> None:
    run(reward_source("llama-1"), tmp_path / "out")
    with pytest.raises(InputError, match="is a parm-mlx reward model already"):
        convert(Request(source=str(tmp_path / "out"), out=tmp_path / "again", dtype="float16"), lambda note: None)
