"""Log-probabilities of responses under a PARM, with output logits for response tokens only.

The output layer is the largest matrix of many models, and prompt positions and padding do not need it. The seam for
computing it in chunks is :meth:`ResponseScorer.token_logprobs`.
"""

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import Layer, trunk_and_output_layer
from parm_mlx.pblora.layer import Preferences, conditioned
from parm_mlx.training.batches import Batch
from parm_mlx.training.loss import token_logprobs


class ResponseScorer:
    """Scores the responses of a batch with a model that has adapters attached.

    Args:
        model: An mlx-lm model with adapters; the scores are differentiable in them.
        k: Number of objectives.
    """

    def __init__(self, model: nn.Module, k: int) -> None:
        self.model = model
        self.parts = split_output_layer(model, k)

    def __call__(self, batch: Batch, alpha: mx.array) -> mx.array:
        """Σ_t log π_θ(α)(y_t | x, y_<t) of every response, its end of sequence included.

        Args:
            batch: B pairs.
            alpha: (k,), or (B, k) with one preference vector per pair.

        Returns:
            (2, B) float32.
        """
        rows = alpha if alpha.ndim == 1 else mx.concatenate([alpha, alpha])
        with conditioned(Preferences(rows)):
            logprobs = batch.members @ self.token_logprobs(batch)
        return logprobs.reshape(2, -1)

    def token_logprobs(self, batch: Batch) -> mx.array:
        """The log-probability of every response token, (N,) float32."""
        if self.parts is None:
            return token_logprobs(_at(self.model(batch.inputs), batch.positions), batch.targets)
        trunk, output_layer = self.parts
        hidden = _at(trunk(batch.inputs), batch.positions)
        return token_logprobs(output_layer(hidden), batch.targets)


def split_output_layer(model: nn.Module, k: int) -> tuple[Layer, Layer] | None:
    """Splits a model into everything up to the last hidden states, and its output layer.

    Families differ in what they do after the output layer (soft caps, scaling), so the two parts are kept only if they
    reproduce the model's logits on a few tokens.

    Args:
        model: An mlx-lm model with adapters attached.
        k: Number of objectives.

    Returns:
        The two parts, or None where the model does not come apart this way.
    """
    if (parts := trunk_and_output_layer(model)) is None:
        return None
    trunk, output_layer = parts
    was_training = model.training
    model.eval()
    ids = mx.arange(4)[None]
    with conditioned(Preferences(mx.full((k,), 1 / k))):
        whole, joined = model(ids), output_layer(trunk(ids))
    model.train(was_training)
    same = whole.shape == joined.shape and mx.allclose(whole, joined, rtol=1e-4, atol=1e-4).item()
    return parts if same else None


def _at(x: mx.array, positions: mx.array) -> mx.array:
    """Rows of x (2B, L, D) at flat positions (N,): (N, D)."""
    return x.reshape(-1, x.shape[-1])[positions]
