import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import stream_generate

import parm_mlx
from parm_mlx.errors import AdapterError, ModelError
from parm_mlx.guidance import loading
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.loading import load_base, load_draft
from parm_mlx.guidance.named import recorded_backbone
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import load_session
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.mlxlm import load_weights_and_tokenizer, quantized_numbers, save_converted


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def change_json(file: Path, change: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_the_backbone_that_the_adapter_records_is_used(official: Path, official_parm: Path) -> None:
    assert recorded_backbone(official_parm) == (official / "arm_base").resolve()
    guide, tokenizer = parm_mlx.load_guide(official_parm, alpha="helpful=1")
    assert guide.alpha == (0.0, 1.0)
    assert tokenizer.eos_token_id == 2


def test_an_adapter_may_lie_beside_its_backbone(official: Path, official_parm: Path, tmp_path: Path) -> None:
    copy(official / "arm_base", tmp_path / "models" / "arm")
    parm = copy(official_parm, tmp_path / "models" / "parm")
    change_json(parm / "adapter_config.json", lambda c: c.update(base_model="../arm"))
    assert parm_mlx.load_guide(parm)[0].objectives == ("harmless", "helpful")


def test_a_missing_backbone_is_explained(official_parm: Path, tmp_path: Path) -> None:
    parm = copy(official_parm, tmp_path / "parm")
    change_json(parm / "adapter_config.json", lambda c: c.update(base_model="/gone/away"))
    with pytest.raises(ModelError, match="guide model /gone/away: no such directory") as caught:
        parm_mlx.load_guide(parm)
    assert "--guide-model" in str(caught.value.hint)
    change_json(parm / "adapter_config.json", lambda c: c.update(base_model=None))
    with pytest.raises(AdapterError, match="does not record its backbone"):
        parm_mlx.load_guide(parm)


def test_one_model_as_base_and_backbone_is_held_once(official: Path, official_parm: Path) -> None:
    model, _ = parm_mlx.load(official / "arm_base", official_parm)
    mx.eval(model.guide.model.parameters())
    weights = sum(v.nbytes for _, v in tree_flatten(model.guide.model.parameters()))
    before = mx.get_active_memory()
    for share in ("on", "off"):
        model, _ = parm_mlx.load(official / "arm_base", official_parm, share=share)
        mx.eval(model.base(mx.array([[1]])), model(mx.array([[1]])))
        assert sum(v.nbytes for _, v in tree_flatten(model.parameters())) < (2.5 if share == "off" else 1.5) * weights
    assert mx.get_active_memory() - before < 0.5 * weights
    ids = mx.array([[1, 5, 9]])
    alone, _ = parm_mlx.load_guide(official_parm)
    assert mx.array_equal(model.guide(ids, alpha="1,0"), alone(ids, alpha="1,0"))


def test_base_and_guide_share_a_pass_where_their_weights_are_the_same(
    official: Path, official_parm: Path, tmp_path: Path
) -> None:
    assert isinstance(parm_mlx.load(official / "arm_base", official_parm)[0], SharedModel)
    assert isinstance(parm_mlx.load(copy(official / "arm_base", tmp_path / "copy"), official_parm)[0], SharedModel)
    assert not isinstance(parm_mlx.load(official / "arm_base", official_parm, share="off")[0], SharedModel)
    assert not isinstance(parm_mlx.load(official / "base_lm", official_parm)[0], SharedModel)
    with pytest.raises(
        ModelError, match="cannot share one forward pass: they are models of different settings"
    ) as caught:
        parm_mlx.load(official / "base_lm", official_parm, share="on")
    assert "--share on" in str(caught.value.hint)


def test_a_draft_model_needs_the_bases_vocabulary(official: Path, tmp_path: Path) -> None:
    _, tokenizer = load_base(official / "base_lm")
    assert load_draft(official / "arm_base", tokenizer, official / "base_lm")(mx.array([[1]])).shape[-1] == 512
    other = copy(official / "base_lm", tmp_path / "other")
    change_json(other / "tokenizer.json", lambda c: swap_tokens(c["model"]["vocab"]))
    with pytest.raises(ModelError, match=r"draft model .* have different tokenizers: 2 ids"):
        load_draft(other, tokenizer, official / "base_lm")
    with pytest.raises(ModelError, match=r"draft model .*no such directory"):
        load_draft(tmp_path / "gone", tokenizer, official / "base_lm")


def test_sixteen_bit_weights_are_widened_on_a_cpu(official: Path, official_parm: Path, tmp_path: Path) -> None:
    half = copy(official / "base_lm", tmp_path / "half")
    weights = mx.load(str(half / "model.safetensors"))
    mx.save_safetensors(str(half / "model.safetensors"), {k: v.astype(mx.bfloat16) for k, v in weights.items()})
    model, _ = parm_mlx.load(half, official_parm)
    expected = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16
    assert model.base(mx.array([[1, 2]])).dtype == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), r"no model\*.safetensors"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "found pytorch_model.bin, not loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 64), "cannot be loaded"),
        (lambda d: [(d / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], "holds no tokenizer"),
        (lambda d: change_json(d / "config.json", lambda c: c.update(model_type="unheard-of")), "unheard-of"),
        (
            lambda d: change_json(d / "config.json", lambda c: c.update(num_hidden_layers=5)),
            "cannot be loaded: Missing",
        ),
        (lambda d: change_json(d / "config.json", lambda c: c.pop("hidden_size")), "cannot be loaded"),
        (lambda d: (d / "config.json").write_text("{"), "not readable JSON"),
    ],
)
def test_broken_models_are_refused_in_one_line(
    official: Path, official_parm: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    broken = copy(official / "base_lm", tmp_path / "broken")
    change(broken)
    with pytest.raises(ModelError, match=reason) as caught:
        parm_mlx.load(broken, official_parm)
    assert "\n" not in str(caught.value)


def swap_tokens(vocabulary: dict[str, int]) -> None:
    names = list(vocabulary)
    a, b = names[300], names[301]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def test_another_tokenizer_is_refused_with_what_differs(official: Path, official_parm: Path, tmp_path: Path) -> None:
    other = copy(official / "base_lm", tmp_path / "other")
    change_json(other / "tokenizer.json", lambda c: swap_tokens(c["model"]["vocab"]))
    with pytest.raises(
        ModelError, match=r"different tokenizers: 2 ids stand for different tokens \(\d+ is '.*' and '.*'"
    ):
        parm_mlx.load(other, official_parm, across="off")


def test_a_special_token_in_one_of_them_is_no_obstacle(official: Path, official_parm: Path, tmp_path: Path) -> None:
    other = copy(official / "base_lm", tmp_path / "other")
    pad = {"id": 512, "content": "<pad>", "special": True}
    pad |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    change_json(other / "tokenizer.json", lambda c: c["added_tokens"].append(pad))
    model, tokenizer = parm_mlx.load(other, official_parm)
    assert "<pad>" in tokenizer.get_vocab()
    assert model(mx.array([[1, 2]])).shape[-1] == 512


def end_with(directory: Path, token: int) -> Path:
    """Makes a token the only end-of-sequence token of a model."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    text = next(text for text, number in vocabulary.items() if number == token)
    change_json(directory / "tokenizer_config.json", lambda c: c.update(eos_token=text))
    change_json(directory / "config.json", lambda c: c.update(eos_token_id=token))
    for name in ("special_tokens_map.json", "generation_config.json"):
        (directory / name).unlink(missing_ok=True)
    return directory


def test_an_answer_ends_at_the_end_token_of_either_model(official: Path, official_parm: Path, tmp_path: Path) -> None:
    """The guide ends with a token of an answer, the base with another one."""
    model, tokenizer = parm_mlx.load(official / "base_lm", official_parm)
    prompt = Prompter(tokenizer, tokenizer)("Tell me a joke.")
    request = Request(prompt, (0.3, 0.7), Sampling())
    whole = next(generate_batch(model, tokenizer, [request], 12)).tokens
    end = next(i for i in range(3, 12) if whole[i] not in whole[:i])
    guide = end_with(copy(official / "arm_base", tmp_path / "guide"), whole[end])

    model, tokenizer = parm_mlx.load(official / "base_lm", official_parm, guide_model=guide)
    assert tokenizer.eos_token_ids == {2, whole[end]}
    assert tokenizer.eos_token_id == 2
    for drafting in (None, Drafting(None, 3)):
        answer = next(generate_batch(model, tokenizer, [request], 12, drafting=drafting))
        assert (answer.tokens, answer.finish_reason) == (whole[:end], "stop")
    last = list(stream_generate(model, tokenizer, prompt.base, 12, prompt_cache=model.make_cache((0.3, 0.7))))[-1]
    assert (last.finish_reason, last.token) == ("stop", whole[end])


def test_models_without_an_end_in_common_are_refused(official: Path, official_parm: Path, tmp_path: Path) -> None:
    """The base ends with a token that the guide's vocabulary does not have; the guide has none of its own."""
    base, guide = copy(official / "base_lm", tmp_path / "base"), copy(official / "arm_base", tmp_path / "guide")
    token = {"id": 512, "content": "<end>", "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    change_json(base / "tokenizer.json", lambda c: c["added_tokens"].append(token))
    change_json(base / "tokenizer_config.json", lambda c: c.update(eos_token="<end>"))
    change_json(base / "config.json", lambda c: c.update(eos_token_id=512))
    change_json(guide / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    change_json(guide / "config.json", lambda c: c.update(eos_token_id=None))
    for directory in (base, guide):
        for name in ("special_tokens_map.json", "generation_config.json"):
            (directory / name).unlink(missing_ok=True)
    assert parm_mlx.load(base, official_parm)[1].eos_token_ids == {2, 512}
    with pytest.raises(ModelError, match="no end-of-sequence token in common"):
        parm_mlx.load(base, official_parm, guide_model=guide)


@pytest.fixture
def quantised(official: Path, tmp_path: Path) -> Path:
    model, tokenizer = load_weights_and_tokenizer(official / "arm_base")
    (folder := tmp_path / "quantised").mkdir()
    save_converted(folder, model, tokenizer, official / "arm_base", quantization=("affine", 4, 32))
    return folder


def test_quantised_models_are_the_same_in_float32_on_a_cpu(quantised: Path, official_parm: Path) -> None:
    ids = mx.array([[1, 5, 9, 33]])
    (plain, _), (bits, _) = (load_base(quantised, dequantize) for dequantize in ("auto", "off"))
    assert not any(map(quantized_numbers, plain.modules()))
    assert any(map(quantized_numbers, bits.modules()))
    assert mx.allclose(plain(ids), bits(ids), atol=1e-4)
    for dequantize in ("auto", "off"):
        shared, _ = parm_mlx.load(quantised, official_parm, quantised, dequantize=dequantize)
        apart, _ = parm_mlx.load(quantised, official_parm, quantised, share="off", dequantize=dequantize)
        assert isinstance(shared, SharedModel)
        cache = [model.make_cache([0.5, 0.5]) for model in (shared, apart)]
        assert mx.allclose(shared(ids, cache=cache[0]), apart(ids, cache=cache[1]), atol=1e-3)


def test_models_that_would_not_fit_keep_their_bits(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "usable_memory", lambda: 1000)
    assert any(map(quantized_numbers, load_base(quantised)[0].modules()))


def test_a_session_says_that_it_computes_in_float32(quantised: Path, official_parm: Path) -> None:
    (note,) = load_session(quantised, official_parm, quantised, chat_template="beaver").notes
    assert note.endswith("is computed in float32, which is faster on a CPU (--dequantize off keeps its bits)")
    assert load_session(quantised, official_parm, quantised, chat_template="beaver", dequantize="off").notes == []
