"""Which β the guide is proposed to be used with: the gentlest one at which it still decides.

For pairs that were held out, the guided model (Eq. 13) prefers a response by its log-probability, and each objective
alone says whether that is the better one. Small β gives the guide's own accuracy, large β the base's. The proposal is
the largest β whose accuracy is within a standard error of the best: what more strength would gain is not measurable.
"""

from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.pblora.layer import Preferences, Unconditioned, conditioned

BETAS = (4.0, 2.0, 1.0, 0.5, 0.25)
PAIRS = 24  # are enough
FEWEST = 8  # judgements, below which nothing is proposed


def propose_beta(model: nn.Module, pairs: Iterable[TokenPair], k: int) -> float | None:
    """Returns the proposal for an adapted model, or None where the pairs are too few.

    Args:
        model: The backbone with adapters; its own answers are the base's.
        pairs: Held-out pairs; of each, both responses are read by the base and at every corner.
        k: Number of objectives.
    """
    was_training = model.training
    model.eval()
    try:
        rows = [row for pair in pairs for row in _judgements(model, pair, k)]
    finally:
        model.train(was_training)
    return gentlest(np.array(rows)) if len(rows) >= FEWEST else None


def gentlest(right: np.ndarray) -> float:
    """Returns the proposal, given which judgements are right at each of ``BETAS``: (n, 5) of 0 and 1."""
    mean = right.mean(0)
    best = int(mean.argmax())
    enough = mean >= mean[best] - right[:, best].std() / np.sqrt(len(right))
    return BETAS[int(enough.argmax())]


def _judgements(model: nn.Module, pair: TokenPair, k: int) -> list[list[bool]]:
    """For each objective that judged a pair, whether it is followed at each of ``BETAS``."""
    judging = [i for i in range(k) if pair.preferred[i] >= 0]
    if not judging:
        return []
    logprobs = np.array([_guided_logprobs(model, row, judging, k) for row in pair.rows])  # (2, objectives, β)
    margins = logprobs[1] - logprobs[0]
    return [list((margins[j] > 0) == bool(pair.preferred[i])) for j, i in enumerate(judging)]


def _guided_logprobs(model: nn.Module, row: TokenRow, objectives: Sequence[int], k: int) -> list[list[float]]:
    """Log π̃ of a response at the corner of each objective and each of ``BETAS``."""
    tokens = mx.array(row.ids)[None]
    response = tokens[:, row.start :, None]

    def logits() -> mx.array:
        return widened(model(tokens))[:, row.start - 1 : -1]

    with conditioned(Unconditioned()):
        base = logits()
    found = []
    for i in objectives:
        with conditioned(Preferences(mx.eye(k)[i : i + 1])):
            guide = logits()
        sums = []
        for beta in BETAS:
            guided = combine_logits(base, guide, 1 / beta)
            own = mx.take_along_axis(guided, response, axis=-1)[..., 0]
            sums.append((own - mx.logsumexp(guided, axis=-1)).sum())
        found.append(mx.stack(sums))
        mx.eval(found[-1])  # no more than one guide's logits live at a time
    values: list[list[float]] = mx.stack(found).tolist()  # type: ignore[assignment]
    return values
