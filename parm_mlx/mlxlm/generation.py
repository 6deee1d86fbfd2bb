"""mlx-lm's generators, filters of probabilities and trackers of experiments."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch, generation_stream
from mlx_lm.generate import wired_limit as mlx_wired_limit
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors


class AgreedBatchGenerator(BatchGenerator):
    """mlx-lm's generator of a batch, with a last word on the tokens of all its rows at each step.

    Args:
        model: The model.
        agree: Given the tokens (B,) that the rows have drawn, returns those to go on with.
        settings: Those of mlx-lm's generator.
    """

    def __init__(self, model: Any, agree: Callable[[mx.array], mx.array], **settings: Any) -> None:
        super().__init__(model, **settings)

        def settle(batch: Any) -> None:
            batch._next_tokens = agree(batch._next_tokens)
            mx.async_eval(batch._next_tokens)

        class Rows(GenerationBatch):
            def _step(self) -> Any:
                found = super()._step()
                settle(self)
                return found

        class Prompts(PromptProcessingBatch):
            def generate(self, tokens: list[list[int]]) -> Any:
                rows = super().generate(tokens)  # has taken its first step
                settle(rows)
                return rows

        fallback = self.sampler
        self._generation_batch = Rows.empty(model, fallback)
        self._prompt_batch = Prompts.empty(model, fallback, prefill_step_size=self.prefill_step_size)


def wired_limit(model: nn.Module) -> AbstractContextManager[None]:
    """Lets a Mac keep a model's weights in memory while the block generates with it; elsewhere nothing happens."""
    limit: Any = mlx_wired_limit
    limited: AbstractContextManager[None] = limit(model, [generation_stream])
    return limited


def filter_logprobs(logprobs: mx.array, *, top_p: float, min_p: float, top_k: int) -> mx.array:
    """Applies nucleus, minimum-probability and top-k filters, in mlx-lm's order.

    mlx-lm refuses a ``top_k`` that keeps every token; here it filters nothing. Its nucleus filter drops every token
    where ``top_p`` is smaller than the rounding of a sum of probabilities; here the likeliest one always stays.
    """
    if 0 < top_p < 1:
        likeliest = logprobs >= logprobs.max(axis=-1, keepdims=True)
        logprobs = mx.where(likeliest, logprobs, apply_top_p(logprobs, top_p))
    if min_p > 0:
        logprobs = apply_min_p(logprobs, min_p)
    if 0 < top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs


def penalty_processors(
    logit_bias: dict[int, float], presence_penalty: float, frequency_penalty: float
) -> list[Callable[[mx.array, mx.array], mx.array]]:
    """What changes logits (1, V), given the tokens of the answer so far, as OpenAI defines these three."""
    everything = 1 << 30
    make: Any = make_logits_processors
    processors: list[Callable[[mx.array, mx.array], mx.array]] = make(
        logit_bias=logit_bias or None,
        presence_penalty=presence_penalty or None,
        presence_context_size=everything,
        frequency_penalty=frequency_penalty or None,
        frequency_context_size=everything,
    )
    return processors


def reporting_callback(trackers: str, project_name: str, log_dir: str, config: dict[str, Any]) -> Any:
    """Starts experiment trackers (wandb, swanlab, comma-separated); the run is named after the last part of log_dir.

    Returns:
        An object with ``on_train_loss_report`` and ``on_val_loss_report``, which take numbers by name.
    """
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    start: Any = get_reporting_callbacks  # its annotation of config is wrong: wandb takes a dictionary
    return start(trackers, project_name=project_name, log_dir=log_dir, config=config)
