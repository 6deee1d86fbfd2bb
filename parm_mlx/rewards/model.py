"""Decoder reward models: a backbone of any mlx-lm family and a linear head on the state of the last token.

    score = w · h_T + b,    h_T: the backbone's last hidden state at the last token of prompt and answer

A directory holds the backbone as an MLX model, the head in float32, and ``reward.json``; ``parm-mlx convert`` makes it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from jinja2 import TemplateError

from parm_mlx.errors import InputError, ModelError, RunError
from parm_mlx.files import is_file, read_json, resolve
from parm_mlx.guidance.encoding import encode, escape, token_ids, unembedded_token
from parm_mlx.guidance.loading import suit_to_cpu
from parm_mlx.guidance.prompts import apply_template
from parm_mlx.guidance.templates import CHAT_TEMPLATES, Content, as_messages, check_template, render_answered
from parm_mlx.mlxlm import (
    attention_windows,
    check_finite,
    check_finite_files,
    context_length,
    embedding_rows,
    load_backbone,
)

REWARD_FILE = "reward.json"
HEAD_FILE = "reward_head.safetensors"
FORMAT = 1
KINDS = ("sequence-classification", "score")


@dataclass(frozen=True)
class RewardSettings:
    """The content of ``reward.json``."""

    kind: str  # "sequence-classification", or "score" for the score heads of Beaver
    labels: tuple[str, ...]  # the names of the outputs
    lower_is_better: bool = False  # the outputs are costs, to be negated
    chat_template: str | None = None  # name of a built-in chat template; None is the tokenizer's own
    pad_token_id: int | None = None  # is skipped when the last token is looked for, as in transformers

    def save(self, directory: Path) -> None:
        """Writes ``reward.json``."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        (directory / REWARD_FILE).write_text(text + "\n", encoding="utf-8")


def read_settings(directory: Path) -> RewardSettings:
    """Reads ``reward.json``; raises ModelError if it is missing, of another format, or a value cannot be used."""
    if not is_file(directory / REWARD_FILE, ModelError):
        raise ModelError(
            f"{directory} is not a reward model: {REWARD_FILE} is missing",
            hint=f"`parm-mlx convert {directory}` makes one from a classifier; hf:{directory} uses it unconverted",
        )
    content = read_json(directory / REWARD_FILE, f"reward model {directory}", ModelError)
    if content.pop("format", None) != FORMAT:
        raise ModelError(f"reward model {directory}: {REWARD_FILE} is not of format {FORMAT}")
    try:
        settings = RewardSettings(**content)  # type: ignore[arg-type]
    except TypeError as error:
        raise ModelError(f"reward model {directory}: {REWARD_FILE}: {str(error).split(') ')[-1]}") from None
    labels: Any = settings.labels
    good = {
        "kind": settings.kind in KINDS,
        "labels": labels and isinstance(labels, list) and all(isinstance(text, str) for text in labels),
        "lower_is_better": isinstance(settings.lower_is_better, bool),
        "chat_template": isinstance(settings.chat_template, str | None),
        "pad_token_id": isinstance(settings.pad_token_id, int | None),
    }
    if not all(good.values()):
        wrong = ", ".join(name for name in good if not good[name])
        raise ModelError(f"reward model {directory}: {REWARD_FILE}: {wrong} cannot be used")
    check_template(settings.chat_template)
    return settings


class RewardModel:
    """A reward model, by its directory or hub id. Its weights are read when the first answer is scored.

    Raises:
        ModelError: There is no such reward model, it cannot be read, or its weights are not finite.
    """

    def __init__(self, source: str | Path) -> None:
        path = resolve(source, "reward model")
        self.source, self.path = str(source), path
        self.settings = read_settings(path)
        self.backbone, self.tokenizer, _ = load_backbone(path, lazy=True)
        check_finite_files(path)
        suit_to_cpu(self.backbone)
        if self.settings.chat_template is None and not self.tokenizer.has_chat_template:
            hint = f"set chat_template in {REWARD_FILE} to one of {', '.join(CHAT_TEMPLATES)}"
            raise ModelError(f"reward model {source} has no chat template", hint=hint)
        self._weight, self._bias = _read_head(path, self.settings, self.backbone(mx.array([[0]])).shape[-1])
        # Attention ignores padding to the right. Models with other kinds of layers score one answer at a time.
        self._batched = attention_windows(self.backbone) is not None
        self._limit, self._rows = context_length(self.backbone), embedding_rows(self.backbone)

    def output(self, label: str | None) -> Callable[[Sequence[Content], Sequence[str]], list[float]]:
        """Returns one output as a reward: from prompts and answers to scores. A cost is negated only here."""
        index = label_index("reward model ", self.source, label, self.settings.labels)
        sign = -1.0 if self.settings.lower_is_better else 1.0

        def scores(prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
            outputs: Any = self.outputs(prompts, answers)[:, index].tolist()
            return [sign * value for value in outputs]

        return scores

    def outputs(self, prompts: Sequence[Content], answers: Sequence[str]) -> mx.array:
        """Returns the raw outputs, float32 (N, labels).

        Raises:
            ModelError: The chat template refuses a conversation.
            InputError: A conversation has a token for which the model has no embedding.
            RunError: A conversation is longer than the model reads.
        """
        rows = [self._tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        size = max(len(rows), 1) if self._batched else 1
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return mx.concatenate([mx.zeros((0, len(self.settings.labels))), *map(self._forward, batches)])

    def _forward(self, rows: Sequence[list[int]]) -> mx.array:
        width = max(map(len, rows))
        states = self.backbone(mx.array([row + [0] * (width - len(row)) for row in rows]))  # (B, L, hidden)
        ends = mx.array([_last(row, self.settings.pad_token_id) for row in rows])
        last = states[mx.arange(len(rows)), ends].astype(mx.float32)
        outputs: mx.array = last @ self._weight.T + self._bias
        mx.eval(outputs)
        return outputs

    def _tokens(self, prompt: Content, answer: str) -> list[int]:
        name = self.settings.chat_template
        prompt, answer = escape(self.tokenizer, prompt), escape(self.tokenizer, answer)
        try:
            if name is not None:
                ids = encode(self.tokenizer, render_answered(name, prompt, answer, self.tokenizer.eos_token or ""))
            else:
                ids = token_ids(self.tokenizer, conversation(self.tokenizer, prompt, answer))
        except TemplateError as error:
            of = f"the chat template of reward model {self.source}"
            raise ModelError(f"{of} does not accept a conversation: {error}") from error
        if self._limit is not None and len(ids) > self._limit:
            raise RunError(f"reward model {self.source} reads {self._limit} tokens; a conversation has {len(ids)}")
        if unembedded := unembedded_token(self.tokenizer, ids, self._rows, "reward model"):
            raise InputError(f"a conversation for reward model {self.source} has {unembedded}")
        return ids or [self.tokenizer.eos_token_id]


def label_index(kind: str, source: str, label: str | None, labels: Sequence[str]) -> int:
    """Returns the index of the output of that name, which is optional if there is only one output."""
    names = ", ".join(labels)
    if label is None and len(labels) > 1:
        prefix = kind if kind.endswith(":") else ""
        hint = f"choose one: {prefix}{source}#{labels[0]}"
        raise InputError(f"{kind}{source} has several outputs: {names}", hint=hint)
    if label is not None and label not in labels:
        raise InputError(f"{kind}{source} has no output {label}: {names}")
    return 0 if label is None else list(labels).index(label)


def conversation(tokenizer: Any, prompt: Content, answer: str) -> str:
    """Renders a prompt and its answer in the tokenizer's own chat template; raises jinja2.TemplateError."""
    messages = [*as_messages(prompt), {"role": "assistant", "content": answer}]
    return apply_template(tokenizer, messages, answered=True)


def _last(row: Sequence[int], pad: int | None) -> int:
    """Returns the index of the last token that is not padding; 0 if all are, as in transformers."""
    return next((i for i in range(len(row) - 1, 0, -1) if row[i] != pad), 0)


def _read_head(directory: Path, settings: RewardSettings, hidden: int) -> tuple[mx.array, mx.array]:
    try:
        tensors: Any = mx.load(str(directory / HEAD_FILE))
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"reward model {directory}: {HEAD_FILE} cannot be read: {error}") from None
    check_finite(directory / HEAD_FILE, tensors)
    outputs = len(settings.labels)
    bias = tensors.pop("bias", mx.zeros(outputs))
    weight = tensors.pop("weight", mx.zeros(()))
    if weight.shape != (outputs, hidden) or bias.shape != (outputs,) or tensors:
        shapes = f"weight {(outputs, hidden)} and optionally bias {(outputs,)}"
        raise ModelError(f"reward model {directory}: {HEAD_FILE} must hold {shapes}")
    return weight.astype(mx.float32), bias.astype(mx.float32)
