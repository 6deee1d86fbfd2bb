"""Sequence classifiers of the Hugging Face hub as rewards, through transformers (the extra ``rewards``)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from jinja2 import TemplateError

from parm_mlx.errors import InputError, ModelError, first_line
from parm_mlx.guidance.templates import Content
from parm_mlx.rewards.model import conversation, label_index

UNLIMITED = 10**9  # tokens, which a tokenizer without a limit says that it reads


class Classifier:
    """A classifier; its score is the output before softmax or sigmoid, higher is better.

    It reads the conversation in its tokenizer's chat template or, if there is none, prompt and answer as a pair of
    texts. Longer conversations are truncated.

    ``source`` is a directory or hub id; ``label`` names the output, and is optional if there is only one.

    Raises:
        InputError: torch or transformers is missing, there is no such output, or there are several and no name.
        ModelError: transformers cannot load it.
    """

    def __init__(self, source: str, label: str | None = None, answer_alone: bool = False) -> None:
        missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
        if missing:
            hint = "install it: pip install 'parm-mlx[rewards]'"
            raise InputError(f"hf:{source} needs {' and '.join(missing)}", hint=hint)
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._source, self._answer_alone = source, answer_alone
        try:
            # None would ask whether to run a model's own code, and read the answer from stdin.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            if "trust_remote_code" in str(error):
                reason = "code of a model is never run, and transformers has no class of its own for it"
                raise ModelError(f"hf:{source}: auto_map is refused: {reason}") from error
            raise ModelError(f"hf:{source} cannot be loaded: {first_line(error)}") from error
        self.commit: str | None = getattr(model.config, "_commit_hash", None)
        on_gpu = torch.backends.mps.is_available()
        self._model: Any = model.to("mps").eval() if on_gpu else model.float().eval()
        self._index = label_index("hf:", source, label, [name for _, name in sorted(model.config.id2label.items())])
        pad = self._tokenizer.pad_token_id
        self._padded = pad is not None and pad == model.config.get_text_config().pad_token_id
        positions = getattr(model.config, "max_position_embeddings", None)
        table = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
        limits = (self._tokenizer.model_max_length, positions and positions - (0 if table is None else table + 1))
        self._limit = min((limit for limit in limits if limit and limit < UNLIMITED), default=None)

    def __call__(self, prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
        """Scores answers, each to its prompt."""
        rows = [self._read(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        batches = [rows] if self._padded and rows else [[row] for row in rows]
        return [score for batch in batches for score in self._forward(batch)]

    def _read(self, prompt: Content, answer: str) -> Any:
        cut = {"truncation": True, "max_length": self._limit} if self._limit else {}
        if self._answer_alone:
            return self._tokenizer(answer, **cut)
        try:
            if self._tokenizer.chat_template:
                text = conversation(self._tokenizer, prompt, answer)
                return self._tokenizer(text, add_special_tokens=False, **cut)
            question = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            return self._tokenizer(question, answer, **cut)
        except TemplateError as error:
            of = f"the chat template of hf:{self._source}"
            raise ModelError(f"{of} does not accept a conversation: {error}") from error

    def _forward(self, rows: Sequence[Any]) -> list[float]:
        import torch

        if len(rows) > 1:
            batch = self._tokenizer.pad(list(rows), return_tensors="pt", padding=True, padding_side="right")
        else:
            batch = {key: torch.tensor([values]) for key, values in rows[0].items()}
        with torch.no_grad():
            outputs = self._model(**{key: value.to(self._model.device) for key, value in batch.items()}).logits
        scores: list[float] = outputs[:, self._index].float().tolist()
        return scores
