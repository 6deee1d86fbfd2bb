"""Fits the factors γ of one-pass guidance: one number of each adapted layer, which leave base and guide as they are.

They minimise the KL divergence D_t of one pass from exact guidance over tokens t of answers, at random α and β, by a
Gauss-Newton step from γ = 0. A token has the weight w = 1 / √(D_t + D), with the mean D over all: the sum is then like
that of √D_t, which is what bounds total variation, and few tokens do not outweigh all others. With the Jacobian J of
the logits in γ, the Fisher information F of their distribution and the error e of the probabilities,

    (Jᵀ w F J + λ) γ = Jᵀ w e

which conjugate gradients solve with products alone: J v by differences, Jᵀ u by back-propagation. Few tokens leave γ
near 0: of n tokens, λ = 2 D / (n σ²), in units of the mean weight, is the prior that γ is about σ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from parm_mlx.evaluation.fidelity import ReadAnswer, compare_distributions
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.one_pass import update_shares
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.templates import Content
from parm_mlx.kernels import widened
from parm_mlx.kernels.lowrank import lowrank_update_ops
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, conditioned, scaled_core
from parm_mlx.preference import sample_dirichlet

BETAS = (0.25, 4.0)  # that answers are drawn between
MEASURED = (0.5, 1.0, 2.0)  # at which the result is measured
STEPS = 6  # of conjugate gradients, which most of the gain needs
PRIOR = 0.5  # σ
NUDGE = 0.1  # the largest γ of a difference
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Refinement:
    """Fitted factors, and what they are worth on answers that they were not fitted on.

    Attributes:
        factors: γ of each adapted layer.
        before: Mean total variation and share of equal likeliest tokens at each β, without the factors.
        after: The same with them.
    """

    factors: tuple[float, ...]
    before: dict[float, tuple[float, float]]
    after: dict[float, tuple[float, float]]


def refine(
    guide: Guide,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Content],
    max_tokens: int = 32,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> Refinement:
    """Fits the factors on guided answers to half of the prompts, and measures them on answers to the others.

    Args:
        guide: The guide; its backbone is the base.
        tokenizer: The backbone's.
        prompts: Two or more.
        max_tokens: Length of the answers.
        seed: Of α, β and the answers.
        progress: Told what begins.
    """
    progress(f"answering {len(prompts)} prompts")
    answers = sample_answers(guide, tokenizer, prompts, max_tokens, seed)
    fitted, held_back = answers[::2], answers[1::2]
    progress(f"fitting {len(guide.adapted)} factors on {sum(len(each.answer) for each, _ in fitted)} tokens")
    factors = fit_factors(guide, fitted)
    progress(f"measuring on {sum(len(each.answer) for each, _ in held_back)} other tokens")
    refined = Guide(guide.model, replace(guide.config, one_pass=factors), guide.alpha)
    plain = Guide(guide.model, replace(guide.config, one_pass=None), guide.alpha)
    before, after = ({beta: _measured(each, beta, held_back) for beta in MEASURED} for each in (plain, refined))
    return Refinement(factors, before, after)


def sample_answers(
    guide: Guide, tokenizer: TokenizerWrapper, prompts: Sequence[Content], max_tokens: int, seed: int
) -> list[tuple[ReadAnswer, float]]:
    """Answers prompts with exact guidance, each at an α and a β of its own; returns them, not empty, with 1/β."""
    template = guide.chat_template
    prompter = Prompter(tokenizer, tokenizer, base_template=template, guide_template=template)
    rng = np.random.default_rng(seed)
    alphas = sample_dirichlet(rng, 0.5, len(guide.objectives), len(prompts)).tolist()
    low, high = map(math.log, BETAS)
    betas = np.exp(rng.uniform(low, high, len(prompts))).tolist()
    requests = [
        Request(prompter(prompt), tuple(alpha), Sampling(temp=1.0, seed=seed + i), beta=beta)
        for i, (prompt, alpha, beta) in enumerate(zip(prompts, alphas, betas, strict=True))
    ]
    found: dict[int, tuple[ReadAnswer, float]] = {}
    for answer in generate_batch(SharedModel(guide), tokenizer, requests, max_tokens):
        request = requests[answer.index]
        if answer.tokens and request.alpha is not None and request.beta is not None:
            read = ReadAnswer(request.prompt.base, answer.tokens, request.alpha)
            found[answer.index] = read, 1 / request.beta
    return [found[index] for index in sorted(found)]


def fit_factors(guide: Guide, answers: Sequence[tuple[ReadAnswer, float]]) -> tuple[float, ...]:
    """Returns γ of each adapted layer, fitted on answers with their 1/β."""
    pieces = [_Piece(guide, each, strength) for each, strength in answers]
    zero = np.zeros(len(guide.adapted))
    tokens = sum(len(each.answer) for each, _ in answers)
    mean = sum(float(piece.divergences.sum()) for piece in pieces) / tokens
    for piece in pieces:
        piece.weigh(mean)
    damping = 2 * mean / (tokens * PRIOR**2) * sum(float(piece.weights.sum()) for piece in pieces) / tokens

    def curvature(v: np.ndarray) -> np.ndarray:
        whole: np.ndarray = np.sum([piece.curvature(v) for piece in pieces], axis=0)
        return whole / tokens + damping * v

    residual = np.sum([piece.slope() for piece in pieces], axis=0) / tokens
    solution, direction, size = zero, residual, residual @ residual
    for _ in range(STEPS):
        if size < 1e-20:
            break
        product = curvature(direction)
        step = size / (direction @ product)
        solution, residual = solution + step * direction, residual - step * product
        direction, size = residual + (residual @ residual) / size * direction, residual @ residual
    return tuple(float(value) for value in solution)


class _Piece:
    """One answer: exact probabilities p (n, V) of its n tokens, and those of one pass, as functions of γ.

    Attributes:
        divergences: (n,) KL divergences of one pass at γ = 0 from exact guidance.
        weights: (n,) of the tokens.
    """

    def __init__(self, guide: Guide, answer: ReadAnswer, strength: float) -> None:
        self._guide, self._alpha, self._strength = guide, mx.array([answer.alpha]), mx.array([strength])
        self._ids = mx.array([[*answer.prompt, *answer.answer[:-1]]])
        self._first = len(answer.prompt) - 1
        exact = SharedModel(guide)
        logits = exact(self._ids, cache=exact.make_cache(answer.alpha, strength))[0, self._first :]
        self._p = mx.softmax(logits, axis=-1)
        at_zero = self._logits(mx.zeros(len(guide.adapted)))
        self._q = mx.softmax(at_zero, axis=-1)
        logprobs, others = (z - mx.logsumexp(z, axis=-1, keepdims=True) for z in (logits, at_zero))
        self.divergences = (self._p * (logprobs - others)).sum(axis=-1)
        self.weights = mx.ones_like(self.divergences)
        mx.eval(self._p, self._q, self.divergences)

    def weigh(self, mean: float) -> None:
        """Weighs the tokens by their divergences and the mean of all."""
        self.weights = 1 / mx.sqrt(mx.maximum(self.divergences, 0) + mean + 1e-12)

    def slope(self) -> np.ndarray:
        """Jᵀ w (p − q): the negative gradient of the weighed divergence in γ at 0, summed over tokens."""
        return self._back(self._p - self._q)

    def curvature(self, v: np.ndarray) -> np.ndarray:
        """Jᵀ w F J v, summed over tokens."""
        scale = NUDGE / np.abs(v).max()
        nudge = mx.array((scale * v).astype(np.float32))
        change = (self._logits(nudge) - self._logits(-nudge)) / (2 * scale)
        weighted = self._q * (change - (self._q * change).sum(axis=-1, keepdims=True))
        return self._back(weighted)

    def _back(self, cotangent: mx.array) -> np.ndarray:
        zero = mx.zeros(len(self._guide.adapted))
        _, (found,) = mx.vjp(lambda factors: [self._logits(factors)], [zero], [cotangent * self.weights[:, None]])
        return np.array(found, np.float64)

    def _logits(self, factors: mx.array) -> mx.array:
        shares = update_shares(self._strength, factors)[:, 0]
        with conditioned(_Shares(self._alpha, shares)):
            logits: Any = self._guide.model(self._ids)
        return widened(logits)[0, self._first :] * (1 + self._strength)


class _Shares(Conditioning):
    """A share of the update of each layer, differentiable in the shares; α is (1, k)."""

    def __init__(self, alpha: mx.array, shares: mx.array) -> None:
        self._alpha, self._shares = alpha, shares

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds the share of s · B · M(α) · A · x to y."""
        core = self._shares[layer.index] * scaled_core(layer, layer.config, self._alpha)
        return lowrank_update_ops(y, x, layer.a, core, layer.b)


def _measured(guide: Guide, beta: float, answers: Sequence[tuple[ReadAnswer, float]]) -> tuple[float, float]:
    found = compare_distributions(guide, beta, [each for each, _ in answers])
    return found["total_variation"], found["same_token"]
