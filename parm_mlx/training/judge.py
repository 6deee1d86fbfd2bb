"""Generated answers at the corners of α: what pairs do not tell of a guide.

Accuracy on held-out pairs may stay near one half while the answers at the corners are far apart, or the other way
round. So a few held-out questions are answered by the base and at every corner, with the adapter as it is, and scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from parm_mlx.data.dataset import PreferenceData
from parm_mlx.errors import ConfigError
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.templates import Content
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.rewards.registry import Reward, load_rewards

QUESTIONS, TOKENS = 12, 64
TEMP = 0.7


@dataclass(frozen=True)
class CornerRecord:
    """The mean scores of generated answers; ``corners`` and ``base`` are by objective.

    Attributes:
        step: Steps done.
        base: Of the answers of the base alone.
        corners: Of the answers at the objective's own corner.
        others: Of the answers at the corners of the other objectives.
        distance: ``corners`` less ``others``, in standard deviations of the base's scores.
    """

    step: int
    base: dict[str, float]
    corners: dict[str, float]
    others: dict[str, float]
    distance: dict[str, float]


class Judge:
    """Answers questions at the corners, with a model that is being trained, and scores them.

    Args:
        specs: ``NAME=SPEC`` for objectives.
        model: The backbone with its adapters.
        adapter: Their settings.
        tokenizer: The backbone's.
        questions: Prompts to answer.

    Raises:
        ConfigError: A name is not that of an objective, or there is only one.
        InputError: A SPEC cannot be used.
    """

    def __init__(
        self,
        specs: Sequence[str],
        model: nn.Module,
        adapter: PBLoRAConfig,
        tokenizer: TokenizerWrapper,
        questions: Sequence[Content],
    ) -> None:
        self._rewards: dict[str, Reward] = load_rewards(specs)
        if unknown := [name for name in self._rewards if name not in adapter.objectives]:
            raise ConfigError(f"--reward {unknown[0]}: the objectives are {', '.join(adapter.objectives)}")
        if adapter.k == 1:
            raise ConfigError("--reward compares the corners of several objectives, and there is only one")
        self._shared = SharedModel(Guide(model, adapter))
        self._tokenizer, self._objectives = tokenizer, adapter.objectives
        prompter = Prompter(
            tokenizer, tokenizer, base_template=adapter.chat_template, guide_template=adapter.chat_template
        )
        self._questions = list(questions)
        self._prompts = [prompter(question) for question in questions]

    def __call__(self, step: int) -> CornerRecord:
        """Returns the scores of answers by the adapter as it is; its random numbers are its own."""
        k = len(self._objectives)
        corners = [tuple(float(i == j) for j in range(k)) for i in range(k)]
        requests = [
            Request(prompt, alpha, Sampling(temp=TEMP, seed=number))
            for alpha in (None, *corners)
            for number, prompt in enumerate(self._prompts)
        ]
        texts = [""] * len(requests)
        model: Any = self._shared.guide.model
        model.eval()
        try:
            for answer in generate_batch(self._shared, self._tokenizer, requests, TOKENS):
                texts[answer.index] = answer.text
        finally:
            model.train()
        asked = self._questions * (1 + k)
        means: list[dict[str, float]] = [{}, {}, {}, {}]
        for name, reward in self._rewards.items():
            base, *guided = np.array(reward(asked, texts)).reshape(1 + k, -1)
            own = guided.pop(self._objectives.index(name)).mean()
            others, unit = np.mean(guided), base.std() or 1.0
            for mean, value in zip(means, (base.mean(), own, others, (own - others) / unit), strict=True):
                mean[name] = float(value)
        return CornerRecord(step, *means)


def held_out_questions(data: PreferenceData) -> list[Content]:
    """Returns the first few different prompts to validate on, or to train on where none are held out."""
    different = {pair.prompt_key: pair.prompt for pair in reversed(data.valid or data.train)}
    return list(reversed(different.values()))[:QUESTIONS]
