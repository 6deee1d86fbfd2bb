"""Log-probabilities of responses under a PARM, with the output layer on response tokens only, chunk by chunk.

The output layer is the largest matrix of many models, and prompt positions and padding do not need it. Where a model's
attention allows it, the prompt of a pair is read once for both responses.
"""

from contextlib import AbstractContextManager

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import Layer, trunk_and_output_layer
from parm_mlx.pblora.layer import Preferences, conditioned
from parm_mlx.training.batching import Batch
from parm_mlx.training.loss import token_logprobs
from parm_mlx.training.output import chunked_logprobs, chunked_logprobs_with_grad
from parm_mlx.training.packing import Layout
from parm_mlx.training.prefix import hidden_states, shares_prefixes


class ResponseScorer:
    """Scores the responses of a batch with a model that has adapters attached.

    Args:
        model: An mlx-lm model with adapters; the scores are differentiable in them.
        k: Number of objectives.
        share: Whether prompts may be read once for both responses where the model allows it.

    Attributes:
        parts: Trunk and output layer, or None where the model does not come apart; it is then run whole.
        shares: Whether prompts are shared in the batches where that saves enough.
    """

    def __init__(self, model: nn.Module, k: int, share: bool = True) -> None:
        self.model = model
        uniform = mx.full((k,), 1 / k)
        was_training = model.training
        model.eval()
        with self.conditioned(uniform):
            self.parts = split_output_layer(model)
            self.shares = share and self.parts is not None and shares_prefixes(model, self.parts[0])
        model.train(was_training)

    def conditioned(self, alpha: mx.array) -> AbstractContextManager[None]:
        """Runs what is inside the block under α: (k,), or (B, k) with one preference vector per pair.

        A backward pass that computes layers again needs it as much as the forward pass.
        """
        return conditioned(Preferences(alpha))

    def __call__(self, batch: Batch, alpha: mx.array) -> mx.array:
        """Σ_t log π_θ(α)(y_t | x, y_<t) of every response, its end of sequence included.

        Args:
            batch: B pairs.
            alpha: (k,), or (B, k) with one preference vector per pair.

        Returns:
            (2, B) float32.
        """
        layout = self.layout(batch)
        with self.conditioned(alpha):
            logprobs = layout.members @ self.token_logprobs(layout)
        return logprobs.reshape(2, -1)

    def layout(self, batch: Batch) -> Layout:
        """The arrays of a batch as they are read: prefixes shared where the model allows it and it saves enough."""
        return (batch.shared if self.shares else None) or batch.rows

    def token_logprobs(self, layout: Layout) -> mx.array:
        """The log-probability of every response token, (N,) float32."""
        if self.parts is None:
            logits = self.model(layout.inputs)
            return token_logprobs(logits.reshape(-1, logits.shape[-1])[layout.positions], layout.targets)
        trunk, output_layer = self.parts
        hidden = hidden_states(trunk, layout, len(self.model.layers))[layout.positions]
        score = chunked_logprobs_with_grad if self.model.training else chunked_logprobs
        return score(output_layer, hidden, layout.targets)


def split_output_layer(model: nn.Module) -> tuple[Layer, Layer] | None:
    """Splits a model into everything up to the last hidden states, and its output layer.

    Families differ in what they do after the output layer (soft caps, scaling), so the two parts are kept only if they
    reproduce the model's logits on a few tokens.

    Args:
        model: An mlx-lm model with adapters attached, in evaluation mode, under some preference.

    Returns:
        The two parts, or None where the model does not come apart this way.
    """
    if (parts := trunk_and_output_layer(model)) is None:
        return None
    trunk, output_layer = parts
    ids = mx.arange(4)[None]
    whole, joined = model(ids), output_layer(trunk(ids))
    same = whole.shape == joined.shape and mx.allclose(whole, joined, rtol=1e-4, atol=1e-4).item()
    return parts if same else None
