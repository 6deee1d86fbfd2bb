"""Reward models against the numbers that transformers computed, and what they read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.convert.run import Request, convert
from parm_mlx.errors import InputError, ModelError, RunError
from parm_mlx.mlxlm import load_backbone
from parm_mlx.rewards.model import HEAD_FILE, RewardModel, read_settings
from parm_mlx.rewards.registry import load_rewards

Make = Callable[..., Path]
KINDS = ("llama-1", "qwen2-2", "beaver-cost")


@pytest.fixture
def converted(reward_source: Make, tmp_path: Path) -> Make:
    """A reward model in our format."""

    def make(kind: str, out: str = "converted", **options: Any) -> Path:
        source = tmp_path / kind
        source = source if source.exists() else reward_source(kind)
        convert(Request(source=str(source), out=tmp_path / out, **options), lambda note: None)
        return tmp_path / out

    return make


def conversations(reward_scores: dict[str, Any]) -> tuple[list[Any], list[str]]:
    prompts, answers = zip(*reward_scores["conversations"], strict=True)
    return list(prompts), list(answers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_outputs_are_those_of_transformers(converted: Make, reward_scores: dict[str, Any], kind: str) -> None:
    """Together in one batch, padded, and one by one. qwen2-2's padding is its </s>, so it reads the state before."""
    model = RewardModel(converted(kind))
    prompts, answers = conversations(reward_scores)
    expected = np.array(reward_scores["scores"][kind])
    np.testing.assert_allclose(np.array(model.outputs(prompts, answers)), expected, atol=1e-4)
    alone = [np.array(model.outputs([p], [a]))[0] for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    assert model.outputs([], []).shape == (0, expected.shape[1])


def test_a_cost_is_negated_once(converted: Make, reward_scores: dict[str, Any]) -> None:
    prompts, answers = conversations(reward_scores)
    cost = [row[0] for row in reward_scores["scores"]["beaver-cost"]]
    rewards = load_rewards([f"harmless={converted('beaver-cost')}"])
    np.testing.assert_allclose(rewards["harmless"](prompts, answers), [-value for value in cost], atol=1e-4)
    rewards = load_rewards([f"r={converted('beaver-cost', 'not-negated', lower_is_better=False)}"])
    np.testing.assert_allclose(rewards["r"](prompts, answers), cost, atol=1e-4)
    rewards = load_rewards([f"r={converted('llama-1', 'negated', lower_is_better=True)}"])
    expected = [-row[0] for row in reward_scores["scores"]["llama-1"]]
    np.testing.assert_allclose(rewards["r"](prompts, answers), expected, atol=1e-4)


def test_a_label_chooses_an_output(converted: Make, reward_scores: dict[str, Any]) -> None:
    prompts, answers = conversations(reward_scores)
    path = converted("qwen2-2", "with#sign")
    rewards = load_rewards([f"a={path}#harmless", f"b={path}#helpful"])
    for i, reward in enumerate(rewards.values()):
        expected = [row[i] for row in reward_scores["scores"]["qwen2-2"]]
        np.testing.assert_allclose(reward(prompts, answers), expected, atol=1e-4)
    with pytest.raises(InputError, match="several outputs: harmless, helpful") as caught:
        load_rewards([f"a={path}"])
    assert f"{path}#harmless" in str(caught.value.hint)
    with pytest.raises(InputError, match="no output honest: harmless, helpful"):
        load_rewards([f"a={path}#honest"])


def test_quantised_and_16_bit_backbones_score_nearly_the_same(converted: Make, reward_scores: dict[str, Any]) -> None:
    from parm_mlx.convert.model import Quantization

    prompts, answers = conversations(reward_scores)
    expected = np.array(reward_scores["scores"]["llama-1"])
    how: dict[str, dict[str, Any]] = {
        "half": {"dtype": "float16"},
        "q": {"quantization": Quantization("affine", 8, 32)},
    }
    for name, options in how.items():
        distance = np.abs(
            np.array(RewardModel(converted("llama-1", name, **options)).outputs(prompts, answers)) - expected
        )
        assert distance.max() < 0.1, name
    assert distance.max() > 1e-4, "8 bits are not exact"


def test_a_built_in_template_is_beavers(converted: Make) -> None:
    """BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{answer}</s>, with <s> in front."""
    model = RewardModel(converted("beaver-cost"))
    assert model.tokenizer.decode(model._tokens("Hi there", "No.")) == (
        "<s>BEGINNING OF CONVERSATION: USER: Hi there ASSISTANT:No.</s>"
    )


def test_a_conversation_that_is_too_long_is_one_line(converted: Make) -> None:
    path = converted("llama-1")
    reward = load_rewards([f"a={path}"])["a"]
    with pytest.raises(
        RunError, match=rf"reward model {re.escape(str(path))} reads 256 tokens; a conversation has \d+"
    ):
        reward(["Hi"], ["word " * 300])


def test_a_token_without_a_row_is_one_line(converted: Make) -> None:
    """A token that was added to the tokenizer alone."""
    model = RewardModel(converted("beaver-cost"))
    rows = model.backbone.model.embed_tokens.weight.shape[0]
    model.tokenizer._tokenizer.add_tokens(["<gap>"])
    number = model.tokenizer.convert_tokens_to_ids("<gap>")
    assert number >= rows
    with pytest.raises(
        InputError, match=rf"has token '<gap>' \(id {number}\); the reward model has .* below {rows} only"
    ):
        model.outputs(["Hi"], ["Mind the <gap>"])


def test_a_conversation_that_the_template_refuses_is_one_line(converted: Make) -> None:
    reward = load_rewards([f"a={converted('beaver-cost')}"])["a"]
    with pytest.raises(ModelError, match="does not accept a conversation: beaver reads user and assistant in turns"):
        reward([[{"role": "assistant", "content": "Hi"}]], ["Hello"])


def spoil_missing(path: Path) -> None:
    (path / "reward.json").unlink()


def spoil_head(path: Path) -> None:
    mx.save_safetensors(str(path / "reward_head.safetensors"), {"weight": mx.zeros((1, 16))})


def spoil_no_head(path: Path) -> None:
    (path / "reward_head.safetensors").unlink()


def spoil_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()


def setting(**values: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = json.loads((path / "reward.json").read_text()) | values
        (path / "reward.json").write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, r"is not a reward model: reward\.json is missing"),
        (spoil_head, r"must hold weight \(1, 32\)"),
        (spoil_no_head, r"reward_head\.safetensors cannot be read"),
        (spoil_template, "has no chat template"),
        (setting(format=2), "is not of format 1"),
        (setting(labels=[]), "labels cannot be used"),
        (setting(labels=["a", "b"]), r"must hold weight \(2, 32\)"),
        (setting(kind="other", lower_is_better="no"), "kind, lower_is_better cannot be used"),
        (setting(chat_template="nobody"), "unknown chat template 'nobody'"),
        (setting(colour=1), "colour"),
    ],
)
def test_what_cannot_be_read_is_one_line(converted: Make, spoil: Callable[[Path], None], message: str) -> None:
    path = converted("llama-1")
    spoil(path)
    with pytest.raises(ModelError, match=message):
        RewardModel(path)


def test_settings_come_back_as_they_were_written(tmp_path: Path, converted: Make) -> None:
    settings = read_settings(converted("qwen2-2"))
    (tmp_path / "again").mkdir()
    settings.save(tmp_path / "again")
    assert read_settings(tmp_path / "again") == settings


def test_weights_are_read_when_they_are_needed(converted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run generates its answers before it scores them, so a reward model must not take memory until then."""
    asked: list[bool] = []

    def load(path: Path, lazy: bool = False) -> Any:
        asked.append(lazy)
        return load_backbone(path, lazy=lazy)

    monkeypatch.setattr("parm_mlx.rewards.model.load_backbone", load)
    RewardModel(converted("llama-1"))
    assert asked == [True]


@pytest.mark.parametrize(("file", "name"), [("model.safetensors", "model.norm.weight"), (HEAD_FILE, "weight")])
def test_numbers_that_are_not_finite_are_refused(converted: Make, file: str, name: str) -> None:
    path = converted("llama-1") / file
    tensors: Any = mx.load(str(path))
    mx.eval(tensors)
    tensors[name] = tensors[name] * mx.nan
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(ModelError, match=rf"not finite \(NaN or infinity\): {name}"):
        RewardModel(path.parent)


def test_no_such_directory() -> None:
    with pytest.raises(ModelError, match=r"reward model \./nowhere: no such directory"):
        load_rewards(["a=./nowhere"])
