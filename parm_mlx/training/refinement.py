"""Trains an adapter further so that one pass stands for base and guide (:mod:`parm_mlx.guidance.one_pass`).

Over tokens of answers, at random α and β, the loss is the mean of

    √(D(p ‖ q) + ε) + h √(D(t ‖ p) + ε)

with the Kullback-Leibler divergence D and the distributions

    p = softmax(z(θ) + s z(θ + Δ))        exact guidance by the adapter in training, s = 1/β
    q = softmax((1 + s) z(θ + c Δ))       one pass with it, c = s / (1 + s)
    t = softmax(z(θ) + s z(θ + Δ'))       exact guidance by the adapter as it came

The first part straightens the way of the logits along the update Δ, the second holds the guide where it was, with the
weight h. Total variation is at most √(D / 2), which is why the roots are summed: few tokens then do not outweigh all
others. The backbone θ is never changed.

The way along a smaller update is straighter, so the loss makes it smaller, too. With its effects on the logits before,
d', and now, d, less their means under t, the share of its size that is kept is √(Σ t d² / Σ t d'²) over tokens and
vocabulary. B is divided by it in the end, on answers that were not trained on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from parm_mlx.errors import RunError
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.templates import Content
from parm_mlx.kernels import widened
from parm_mlx.kernels.lowrank import lowrank_update_ops
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, Preferences, conditioned, scaled_core, tensor_shapes
from parm_mlx.preference import Alpha, sample_dirichlet
from parm_mlx.training import optimizer
from parm_mlx.training.response_logprobs import split_output_layer

FEWEST = 4  # prompts
BETAS = (0.25, 4.0)  # that answers are drawn between
MEASURED = (0.5, 1.0, 2.0)  # at which the result is measured
EPSILON = 2e-4  # ε
WARMUP = 0.1  # share of the steps
REPORTED = 20  # steps whose mean loss is told
SLOWER = 0.65  # of the learning rate of training
HOLD = 0.3  # h
ROUNDS = 2  # of bringing the effect back to its size, in which B is nearly linear
LEAST_KEPT = 0.2  # of the effect; an adapter that has lost more is broken
Progress = Callable[[str], None]
Tensors = list[dict[str, mx.array]]  # those of each adapted layer, in the order of their index


@dataclass(frozen=True)
class SampledAnswer:
    """An answer of the backbone under exact guidance, to be read again.

    Attributes:
        prompt: Its prompt's tokens.
        answer: Its own, one or more.
        alpha: The preference that it was generated under.
        strength: 1/β.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    alpha: Alpha
    strength: float


@dataclass(frozen=True)
class Distance:
    """Means over the tokens of answers.

    Attributes:
        before: Total variation ½ Σ |p − q| between exact and one-pass guidance by the adapter as it came.
        after: The same of the adapter as it is now.
        same: Share of tokens at which both have the same likeliest one, now.
        moved: Total variation of exact guidance now from what it was.
        kept: The size of the update's effect on the logits, as a share of what it was.
    """

    before: float
    after: float
    same: float
    moved: float
    kept: float


def refine(
    guide: Guide,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Content],
    *,
    iters: int = 200,
    batch_size: int = 8,
    learning_rate: float | None = None,
    hold: float = HOLD,
    max_tokens: int = 48,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[float, Distance]:
    """Trains a guide's adapter, in place, on answers to three quarters of the prompts.

    Args:
        guide: The guide; its backbone is the base.
        tokenizer: The backbone's.
        prompts: FEWEST or more; the answers to a quarter of them give the size of the effect and measure the result.
        iters: Steps.
        batch_size: Answers in a step.
        learning_rate: The highest; by default two thirds of that of training for this width.
        hold: h, the weight of holding exact guidance where it was.
        max_tokens: Length of the answers.
        seed: Of α, β, the answers and their order.
        progress: Told what begins, and how it goes.

    Returns:
        By β, what was measured on the answers to the other prompts.

    Raises:
        RunError: The loss is not finite, or the adapter has lost its effect.
    """
    progress(f"answering {len(prompts)} prompts")
    answers = sample_answers(guide, tokenizer, prompts, max_tokens, seed)
    if len(answers) < FEWEST:
        raise RunError(f"{len(answers)} answers are not empty, of {FEWEST} that it takes", hint="give more --prompts")
    held_back, trained = answers[::4], [each for i, each in enumerate(answers) if i % 4]
    progress(f"training for {iters} steps on {sum(len(each.answer) for each in trained)} tokens")
    before = tensors_of(guide)
    peak = learning_rate or SLOWER * optimizer.auto_learning_rate(before[0]["a"].shape[1])
    after = train(guide, trained, iters, batch_size, peak, seed, hold, progress)
    for _ in range(ROUNDS):
        kept = share_kept(guide, before, after, held_back)
        progress(f"the update's effect is {kept:.1%} of what it was; it is brought back to its size")
        for tensors in after:
            tensors["b"] = tensors["b"] / kept
    for layer, tensors in zip(guide.adapted, after, strict=True):
        layer.update(tensors)
    progress(f"measuring on {sum(len(each.answer) for each in held_back)} other tokens")
    found = measure(guide, before, held_back, [1 / beta for beta in MEASURED])
    return dict(zip(MEASURED, found, strict=True))


def sample_answers(
    guide: Guide, tokenizer: TokenizerWrapper, prompts: Sequence[Content], max_tokens: int, seed: int
) -> list[SampledAnswer]:
    """Answers prompts with exact guidance, each at an α and a β of its own; returns the answers that are not empty."""
    template = guide.chat_template
    prompter = Prompter(
        tokenizer,
        tokenizer,
        base_template=template,
        guide_template=template,
        limit=guide.context_length,
        rows=(guide.rows, guide.rows),
    )
    alphas, strengths = _preferences(np.random.default_rng(seed), len(guide.objectives), len(prompts))
    requests = [
        Request(prompter(prompt), tuple(alpha), Sampling(temp=1.0, seed=seed + i), beta=1 / strength)
        for i, (prompt, alpha, strength) in enumerate(zip(prompts, alphas.tolist(), strengths.tolist(), strict=True))
    ]
    found = {
        answer.index: SampledAnswer(
            requests[answer.index].prompt.base, answer.tokens, tuple(alphas[answer.index]), strengths[answer.index]
        )
        for answer in generate_batch(SharedModel(guide), tokenizer, requests, max_tokens)
        if answer.tokens
    }
    return [found[index] for index in sorted(found)]


def train(
    guide: Guide,
    answers: Sequence[SampledAnswer],
    iters: int,
    batch_size: int,
    peak: float,
    seed: int,
    hold: float = HOLD,
    progress: Progress = lambda message: None,
) -> Tensors:
    """Returns the adapter's tensors after training, in float32; the guide itself stays as it is.

    Half of the answers of a step have the α and β that they were generated under, the others any.
    """
    rng, before, reader = np.random.default_rng(seed), tensors_of(guide), _Reader(guide)
    warmup = max(1, round(WARMUP * iters))
    adam = optim.Adam(peak, bias_correction=True)
    tree: Any = {"layers": [{name: tensor.astype(mx.float32) for name, tensor in each.items()} for each in before]}
    adam.init(tree)
    descend = mx.value_and_grad(lambda tree, batch, target: _loss(reader, tree["layers"], batch, target, hold))
    losses: list[float] = []  # since the last report
    for step in range(iters):
        chosen = [answers[i] for i in rng.choice(len(answers), min(batch_size, len(answers)), replace=False)]
        alphas, strengths = _preferences(rng, len(guide.objectives), len(chosen))
        for i, each in list(enumerate(chosen))[::2]:
            alphas[i], strengths[i] = each.alpha, each.strength
        batch = _Batch.of(chosen, alphas, strengths)
        target = _target(reader, before, batch)
        mx.eval(target)
        loss, grads = descend(tree, batch, target)
        grads, _ = optim.clip_grad_norm(grads, optimizer.MAX_GRAD_NORM)
        adam.learning_rate = optimizer.learning_rate(step + 1, peak=peak, warmup=warmup, steps=iters + 1)
        tree = adam.apply_gradients(grads, tree)
        mx.eval(tree, adam.state, loss)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            raise RunError(f"the loss of step {step + 1} is not finite", hint="try a lower --learning-rate")
        if (step + 1) % REPORTED == 0 or step + 1 == iters:
            progress(f"step {step + 1} of {iters}: loss {sum(losses) / len(losses):.4f}")
            losses.clear()
    found: Tensors = tree["layers"]
    return found


def share_kept(guide: Guide, before: Tensors, after: Tensors, answers: Sequence[SampledAnswer]) -> float:
    """The size of the update's effect on the logits as a share of what it was, on answers under their α and β.

    Raises:
        RunError: Nearly nothing is.
    """
    reader, sums = _Reader(guide), np.zeros(2)
    for each in answers:
        batch = _Batch.of([each], np.array([each.alpha]), np.array([each.strength]))
        sums += _effects(reader.base(batch), reader.alone(before, batch), reader.alone(after, batch), each.strength)
    kept = _share(sums)
    if not kept > LEAST_KEPT:
        raise RunError("the adapter has lost its effect", hint="try a lower --learning-rate or a higher --hold")
    return kept


def measure(
    guide: Guide, before: Tensors, answers: Sequence[SampledAnswer], strengths: Sequence[float]
) -> list[Distance]:
    """Measures a guide beside the tensors that its adapter had before, on answers under their α, at each 1/β."""
    now, reader, count = tensors_of(guide), _Reader(guide), 0
    sums, effects = np.zeros((len(strengths), 4)), np.zeros((len(strengths), 2))
    for each in answers:
        batch = _Batch.of([each], np.array([each.alpha]), np.array([1.0]))
        plain = reader.base(batch)
        new, old = (reader.alone(tensors, batch) for tensors in (now, before))
        for row, effect, strength in zip(sums, effects, strengths, strict=True):
            at = _Batch.of([each], np.array([each.alpha]), np.array([strength]))
            p, q, t, u = (
                mx.softmax(logits, axis=-1)
                for logits in (
                    plain + strength * new,
                    reader.one_pass(now, at),
                    plain + strength * old,
                    reader.one_pass(before, at),
                )
            )
            same = (p.argmax(axis=-1) == q.argmax(axis=-1)).sum()
            row += [float(value) for value in (_variation(t, u), _variation(p, q), same, _variation(p, t))]
            effect += _effects(plain, old, new, strength)
        count += len(each.answer)
    shares = [_share(effect) for effect in effects]
    return [Distance(*row) for row in np.column_stack((sums / count, shares)).tolist()]


def tensors_of(guide: Guide) -> Tensors:
    """The adapter's tensors by layer; they stay as they are when the layers get others."""
    config = guide.config
    return [{name: layer[name] for name in tensor_shapes(layer.linear, config)} for layer in guide.adapted]


class Rows(Conditioning):
    """The update of given tensors, in place of the layers' own, in a share of each row's own.

    Args:
        config: The adapter's.
        tensors: Those of each layer by index.
        alpha: (B, k).
        share: (B,) what the update is multiplied by; 0 is the plain model.
    """

    def __init__(
        self, config: PBLoRAConfig, tensors: Sequence[Mapping[str, mx.array]], alpha: mx.array, share: mx.array
    ):
        self._config, self._tensors, self._alpha, self._share = config, tensors, alpha, share

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds the share of s · B · M(α) · A · x to y."""
        own = self._tensors[layer.index]
        core = self._share[:, None, None] * scaled_core(own, self._config, self._alpha)
        return lowrank_update_ops(y, x, own["a"], core, own["b"])


@dataclass(frozen=True)
class _Batch:
    """Answers of B rows, padded on the right to L tokens; N is the number of the answers' own tokens."""

    ids: mx.array  # (B, L)
    places: mx.array  # (N,) where an answer's token is predicted, of B · L
    alpha: mx.array  # (B, k)
    strength: mx.array  # (B,)

    @staticmethod
    def of(answers: Sequence[SampledAnswer], alphas: np.ndarray, strengths: np.ndarray) -> "_Batch":
        rows = [[*each.prompt, *each.answer[:-1]] for each in answers]
        longest = max(map(len, rows))
        ids = [row + [0] * (longest - len(row)) for row in rows]
        places = [
            i * longest + place
            for i, (each, row) in enumerate(zip(answers, rows, strict=True))
            for place in range(len(each.prompt) - 1, len(row))
        ]
        alpha, strength = (mx.array(values.astype(np.float32)) for values in (alphas, strengths))
        return _Batch(mx.array(ids), mx.array(places), alpha, strength)

    @property
    def token_strength(self) -> mx.array:
        """1/β of every token, (N, 1)."""
        return self.strength[self.places // self.ids.shape[1]][:, None]


class _Reader:
    """Logits of a guide's backbone where tokens of answers are predicted: with the update of any tensors, or without.

    The output layer, the largest matrix of a small model, is computed there alone, where the model comes apart.
    """

    def __init__(self, guide: Guide):
        self.guide = guide
        with conditioned(Preferences(mx.full((len(guide.objectives),), 1 / len(guide.objectives)))):
            self._trunk_and_head = split_output_layer(guide.model)

    def base(self, batch: _Batch) -> mx.array:
        """Logits (N, V) of the base."""
        return self.alone(tensors_of(self.guide), batch, 0.0)

    def alone(self, tensors: Sequence[Mapping[str, mx.array]], batch: _Batch, share: float = 1.0) -> mx.array:
        """Logits (N, V) of the guide, or of the model with a share of its update."""
        return self._logits(tensors, batch, mx.full(batch.strength.shape, share))

    def one_pass(self, tensors: Sequence[Mapping[str, mx.array]], batch: _Batch) -> mx.array:
        """Logits (N, V) of one pass."""
        share = batch.strength / (1 + batch.strength)
        return (1 + batch.token_strength) * self._logits(tensors, batch, share)

    def _logits(self, tensors: Sequence[Mapping[str, mx.array]], batch: _Batch, share: mx.array) -> mx.array:
        with conditioned(Rows(self.guide.config, tensors, batch.alpha, share)):
            if self._trunk_and_head is None:
                whole: Any = self.guide.model(batch.ids)
                return widened(whole.reshape(-1, whole.shape[-1])[batch.places])
            trunk, head = self._trunk_and_head
            hidden = trunk(batch.ids)
            return widened(head(hidden.reshape(-1, hidden.shape[-1])[batch.places]))


def _preferences(rng: np.random.Generator, k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """α (count, k) and 1/β (count,)."""
    low, high = (math.log(beta) for beta in BETAS)
    return sample_dirichlet(rng, 0.5, k, count), np.exp(-rng.uniform(low, high, count))


def _target(reader: _Reader, before: Tensors, batch: _Batch) -> tuple[mx.array, mx.array]:
    """The base's logits (N, V), and log t."""
    plain = reader.base(batch)
    return plain, _normalised(plain + batch.token_strength * reader.alone(before, batch))


def _loss(reader: _Reader, tensors: Tensors, batch: _Batch, target: tuple[mx.array, mx.array], hold: float) -> mx.array:
    plain, t = target
    p = _normalised(plain + batch.token_strength * reader.alone(tensors, batch))
    q = _normalised(reader.one_pass(tensors, batch))
    return (_root_divergence(p, q) + hold * _root_divergence(t, p)).mean()


def _normalised(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _root_divergence(p: mx.array, q: mx.array) -> mx.array:
    """√(D(p ‖ q) + ε) (N,), for log-probabilities (N, V)."""
    return mx.sqrt(mx.maximum((mx.exp(p) * (p - q)).sum(axis=-1), 0) + EPSILON)


def _effects(plain: mx.array, old: mx.array, new: mx.array, strength: float) -> tuple[float, float]:
    """Σ t d² and Σ t d'² for logits (N, V) of the base, the guide before and now."""
    t = mx.softmax(plain + strength * old, axis=-1)
    now, was = (each - (t * each).sum(axis=-1, keepdims=True) for each in (new - plain, old - plain))
    return float((t * now * now).sum()), float((t * was * was).sum())


def _share(effects: np.ndarray) -> float:
    """What is kept of an effect; all of none."""
    return math.sqrt(effects[0] / effects[1]) if effects[1] > 0 else 1.0


def _variation(p: mx.array, q: mx.array) -> mx.array:
    return 0.5 * mx.abs(p - q).sum()
