"""Classifiers through transformers. What needs torch is skipped where it is not installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parm_mlx.errors import InputError, ModelError
from parm_mlx.rewards import hf
from parm_mlx.rewards.registry import load_rewards

Make = Callable[..., Path]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (the extra rewards)"
)


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(InputError, match="hf:owner/name needs torch") as caught:
        load_rewards(["a=hf:owner/name"])
    assert caught.value.hint == "install it: pip install 'parm-mlx[rewards]'"


@needs_torch
@pytest.mark.parametrize("kind", ["llama-1", "qwen2-2"])
def test_the_conversation_in_the_models_own_template(
    reward_source: Make, reward_scores: dict[str, Any], kind: str
) -> None:
    labels = ["#harmless", "#helpful"] if kind == "qwen2-2" else [""]
    prompts, answers = (list(part) for part in zip(*reward_scores["conversations"], strict=True))
    path = reward_source(kind)
    for i, label in enumerate(labels):
        reward = load_rewards([f"a=hf:{path}{label}"])["a"]
        expected = [row[i] for row in reward_scores["scores"][kind]]
        np.testing.assert_allclose(reward(prompts, answers), expected, atol=1e-4)


@needs_torch
def test_a_decoder_in_a_padded_batch(reward_source: Make, reward_scores: dict[str, Any]) -> None:
    """With a padding token, the one of the model's config, answers are scored together."""
    path = reward_source("qwen2-2")
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "</s>"}))
    prompts, answers = (list(part) for part in zip(*reward_scores["conversations"], strict=True))
    classifier = hf.Classifier(str(path), "helpful")
    assert classifier._padded
    expected = [row[1] for row in reward_scores["scores"]["qwen2-2"]]
    np.testing.assert_allclose(classifier(prompts, answers), expected, atol=1e-4)
    assert classifier([], []) == []


@needs_torch
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_refused(reward_source: Make, file: str) -> None:
    path = reward_source("llama-1")
    content = json.loads((path / file).read_text())
    content |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "Own"}
    names = ("AutoConfig", "AutoTokenizer", "AutoModelForSequenceClassification")
    (path / file).write_text(json.dumps(content | {"auto_map": dict.fromkeys(names, "own.Own")}))
    (path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="auto_map is refused"):
        hf.Classifier(str(path))


@needs_torch
def test_wrong_labels_and_missing_models_are_one_line(reward_source: Make, tmp_path: Path) -> None:
    path = reward_source("qwen2-2")
    with pytest.raises(InputError, match="several outputs: harmless, helpful"):
        load_rewards([f"a=hf:{path}"])
    with pytest.raises(InputError, match="no output honest: harmless, helpful"):
        load_rewards([f"a=hf-answer:{path}#honest"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_rewards([f"a=hf:{tmp_path / 'nothing'}"])


@needs_torch
@pytest.mark.parametrize("form", ["hf", "hf-answer"])
def test_an_encoder_without_a_chat_template_reads_a_pair_or_the_answer(
    official: Path, tmp_path: Path, form: str
) -> None:
    """A tiny random BERT of 24 positions: padded in a batch, and cut off where a text is longer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(
        BertConfig(**sizes, vocab_size=512, num_labels=1, max_position_embeddings=24, pad_token_id=0)
    ).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(official / "arm_base")
    tokenizer.chat_template, tokenizer.pad_token = None, "<unk>"
    tokenizer.save_pretrained(tmp_path)

    prompts, answers = ["Hi", "How?", "Well, well"], ["No.", "Yes, and thanks!", "word " * 40]
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if form == "hf":
            room = 22 - len(encode(prompt))
            first, second = [1, *encode(prompt)], [1, *encode(answer)[:room]]
        else:
            first, second = [1, *encode(answer)[:23]], []
        kinds = [0] * len(first) + [1] * len(second)
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([first + second])}
            if "token_type_ids" in tokenizer.model_input_names:
                inputs["token_type_ids"] = torch.tensor([kinds])
            expected.append(float(model(**inputs).logits))
    reward = load_rewards([f"a={form}:{tmp_path}"])["a"]
    np.testing.assert_allclose(reward(prompts, answers), expected, atol=1e-4)
