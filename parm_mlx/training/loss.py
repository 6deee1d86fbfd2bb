"""The training objective (PARM, Eq. 10 and Algorithm 1), in the paper's symbols.

    L = Σ_i α_i · mean over D_i of [ −log σ( β_i · (log π(y_w | x) − log π(y_l | x)) − γ ) ]

Both responses of a pair serve every objective; objective i only decides which of the two is y_w. B pairs, k objectives.

An anchor may be added inside the mean, λ times the negative log-likelihood per token of y_w, which is not in the paper
(TRL's ``rpo_alpha``): the loss knows no reference model, and a small one may win by making both responses unlikely.

    … − log σ( … ) − λ · log π(y_w | x) / |y_w|

Instead of the sum, the smooth Tchebycheff scalarisation of the k means may be minimised (Lin et al. 2024, with the
ideal point 0, which the losses never reach):

    L = μ · log Σ_i exp(α_i · L_i / μ),    ∇L = Σ_i w_i · α_i · ∇L_i,    w = softmax(α · L / μ)

For μ → 0 it is the largest α_i · L_i. It also finds trade-offs in dents of a front, which no weighted sum can reach.
"""

from typing import NamedTuple

import mlx.core as mx


class Loss(NamedTuple):
    """The objective on one batch.

    Attributes:
        total: Σ_i α_i · mean loss of objective i. With one α per pair, α weighs inside the mean.
        per_objective: (k,) mean loss of each objective, not weighted by α; 0 where no pair is labelled.
        correct: (k,) summed weights of the pairs whose preferred response is the more likely one.
        labelled: (k,) summed weights of the pairs that the objective judged.
    """

    total: mx.array
    per_objective: mx.array
    correct: mx.array
    labelled: mx.array


def preference_loss(
    logprobs: mx.array,
    preferred: mx.array,
    labelled: mx.array,
    alpha: mx.array,
    beta: mx.array,
    gamma: float = 0.0,
    count: mx.array | None = None,
    nll_weight: float = 0.0,
    lengths: mx.array | None = None,
) -> Loss:
    """The scalarised objective.

    Args:
        logprobs: (2, B) log-probability of each response, summed over its tokens.
        preferred: (B, k) 0 or 1, the response that each objective prefers.
        labelled: (B, k) the weight of the pair where the objective judged it, else 0.
        alpha: (k,), or (B, k) with one preference vector per pair.
        beta: (k,) β_i.
        gamma: γ, the margin that the preferred response should win by.
        count: (k,) the summed weights to take the means over, by default those here. With those of a whole batch, the
            losses of its micro-batches add up to its loss.
        nll_weight: λ.
        lengths: (2, B) tokens of each response, |y|; needed where λ is not 0.
    """
    margin = (1 - 2 * preferred) * (logprobs[0] - logprobs[1])[:, None]  # log π(y_w | x) − log π(y_l | x)
    losses = mx.logaddexp(0.0, gamma - beta * margin)
    if nll_weight and lengths is not None:
        first, second = (-logprobs / lengths)[..., None]
        losses = losses + nll_weight * mx.where(preferred > 0, second, first)
    losses = losses * labelled
    count = labelled.sum(axis=0) if count is None else count
    return Loss(
        total=means((alpha * losses).sum(axis=0), count).sum(),
        per_objective=means(losses.sum(axis=0), count),
        correct=((margin > 0) * labelled).sum(axis=0),
        labelled=labelled.sum(axis=0),
    )


def means(sums: mx.array, count: mx.array) -> mx.array:
    """The mean of each objective, (k,), from sums and the weights that they are made of; 0 where there is none."""
    return sums * (1 / mx.where(count > 0, count, 1))


def scalarise(losses: mx.array, alpha: mx.array, judged: mx.array, smoothing: float | None) -> mx.array:
    """One loss of the means L_i of all objectives (k,): Σ_i α_i · L_i, or with μ the smooth Tchebycheff loss."""
    return (alpha * losses).sum() if smoothing is None else smooth_tchebycheff(losses, alpha, smoothing, judged)


def smooth_tchebycheff(losses: mx.array, alpha: mx.array, smoothing: float, judged: mx.array) -> mx.array:
    """The smooth Tchebycheff scalarisation, μ · log Σ_i exp(α_i · L_i / μ).

    Args:
        losses: (k,) L_i, the mean loss of each objective.
        alpha: (k,).
        smoothing: μ > 0.
        judged: (k,) bool; objectives without any label have no place in the sum.
    """
    return smoothing * mx.logsumexp(mx.where(judged, alpha * losses / smoothing, -mx.inf))


def tchebycheff_weights(losses: mx.array, alpha: mx.array, smoothing: float, judged: mx.array) -> mx.array:
    """The derivative of :func:`smooth_tchebycheff` in each L_i: α_i · softmax(α · L / μ)_i, (k,)."""
    return alpha * mx.softmax(mx.where(judged, alpha * losses / smoothing, -mx.inf))
