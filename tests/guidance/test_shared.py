"""Base and guide as rows of one model, whatever happens to the sequences of a batch."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import _extend_cache, _merge_caches
from tiny import VOCABULARY, tiny_guide, tiny_model, tiny_shared

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import PrefixCaches, prefill, read
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel, weights_differ
from parm_mlx.mlxlm import rewind

PROMPT = [3, 14, 15, 9, 26, 5]


def test_a_shared_pass_gives_the_logits_of_two_models() -> None:
    guide = tiny_guide()
    shared, two = SharedModel(guide, 0.5), GuidedModel(tiny_model("llama", 1), guide, 0.5)
    ids = mx.array([PROMPT, PROMPT[::-1]])
    assert mx.allclose(shared(ids), two(ids), rtol=1e-4, atol=1e-4)
    assert mx.allclose(shared.base(ids), two.base(ids), rtol=1e-4, atol=1e-4)
    assert shared.objectives == two.objectives
    assert shared.vocabulary == VOCABULARY
    assert len(shared.layers) == len(shared.make_cache())


def test_the_weights_are_counted_once() -> None:
    """mlx-lm adds up what a model holds to set the memory limit of a Mac."""
    guide = tiny_guide()
    alone = sum(v.nbytes for v in _arrays(guide))
    assert sum(v.nbytes for v in _arrays(SharedModel(guide))) == alone


def _arrays(model: nn.Module) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [value for _, value in tree_flatten(model) if isinstance(value, mx.array)]


def test_one_pass_reads_both_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the two rows are held together, the backbone runs once per call, with two rows per sequence."""
    shared = tiny_shared()
    shapes = []
    original = type(shared.guide.model).__call__

    def counted(this: Any, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        shapes.append(inputs.shape)
        return original(this, inputs, *args, **kwargs)

    monkeypatch.setattr(type(shared.guide.model), "__call__", counted)
    cache = shared.make_cache([0.3, 0.7])
    shared(mx.array([PROMPT]), cache=cache)
    shared(mx.array([[7]]), cache=cache)
    assert shapes == [(2, len(PROMPT)), (2, 1)]
    shared.split_cache(cache)
    shapes.clear()
    shared(mx.array([[8]]), cache=cache)
    assert shapes == [(2, 1)], "rows read apart are joined again"


def test_a_prompt_under_several_preferences_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for the base and one for each preference at first; rows of the guide alone when more answers start."""
    shared = tiny_shared()
    requests = [Request(PromptTokens(PROMPT, PROMPT), (w, 1 - w), Sampling()) for w in (1.0, 0.3, 0.6)]
    shapes = []
    original = type(shared.guide.model).__call__

    def counted(this: Any, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        shapes.append(inputs.shape)
        return original(this, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(shared.guide.model), "__call__", counted)
        prefixes = PrefixCaches(shared, requests)
        begun = prefixes(requests[:2]) + prefixes(requests[2:])
    assert shapes == [(3, len(PROMPT) - 1), (1, len(PROMPT) - 1)]
    for request, (left, cache) in zip(requests, begun, strict=True):
        alone = shared.make_cache(request.alpha)
        whole = shared(mx.array([PROMPT]), cache=alone)[:, -1]
        np.testing.assert_allclose(shared(mx.array([left]), cache=cache)[:, -1], whole, rtol=1e-4, atol=1e-4)


def test_one_sequence_takes_two_passes_where_that_is_faster() -> None:
    """The same logits; what is in a batch stays there."""
    shared, apart = tiny_shared(), tiny_shared()
    apart.apart = True
    caches = shared.make_cache([0.3, 0.7]), apart.make_cache([0.3, 0.7])
    for tokens in ([PROMPT], [[7]], [[8]]):
        logits = [model(mx.array(tokens), cache=c) for model, c in zip((shared, apart), caches, strict=True)]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
    assert [len(pair.parts) for pair in caches[1][:-1]] == [2] * len(apart.guide.model.layers)
    batch = [type(entry).merge([entry]) for entry in caches[1]]
    apart(mx.array([[9]]), cache=batch)
    assert [len(pair.parts) for pair in batch[:-1]] == [1] * len(apart.guide.model.layers)


@pytest.mark.parametrize("family", ["llama", "mamba", "jamba", "gemma3_text"])
def test_a_batch_of_a_model_that_takes_two_passes_for_one_sequence(family: str) -> None:
    shared, apart = tiny_shared(family), tiny_shared(family)
    apart.apart = True
    requests = [Request(PromptTokens(PROMPT, PROMPT), (w, 1 - w), Sampling()) for w in (1.0, 0.3, 0.6)]
    answers = [
        [answer.tokens for answer in sorted(generate_batch(model, NoEnds(), requests, 6), key=lambda each: each.index)]
        for model in (shared, apart)
    ]
    assert answers[0] == answers[1]
    assert [len(tokens) for tokens in answers[1]] == [6] * 3


class NoEnds:
    """A tokenizer that is only asked for ends and texts."""

    eos_token_ids = frozenset[int]()

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_rows_that_cannot_be_held_together_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked entries of different lengths have no padded form in mlx-lm."""
    shared = tiny_shared("llama4")
    cache = shared.make_cache([0.3, 0.7])
    last = prefill(shared, cache, PROMPT, [*PROMPT[:3], 50, 51, *PROMPT[3:]])
    calls = []
    original = shared.guide.run
    monkeypatch.setattr(shared.guide, "run", lambda *args: calls.append(args[0].shape) or original(*args))
    shared(mx.array([[last]]), cache=cache)
    assert calls == [(1, 1)]


def changed(model: nn.Module, name: str) -> nn.Module:
    layer = model.layers[1].self_attn
    layer[name].weight = layer[name].weight + 1e-3
    return model


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (lambda: tiny_model("llama", 1), None),
        (lambda: changed(tiny_model("llama", 1), "q_proj"), "model.layers.1.self_attn.q_proj.weight has other values"),
        (lambda: tiny_model("llama", 1, bits=4), "only one of them has"),
        (lambda: tiny_model("llama", 1, rope_theta=5.0), "models of different settings"),
        (lambda: tiny_model("qwen2", 1), "models of different settings"),
    ],
)
def test_what_keeps_two_models_from_being_one_is_said(base: Any, reason: str | None) -> None:
    difference = weights_differ(base(), tiny_guide().model)
    assert difference is None if reason is None else reason in str(difference)


def test_quantised_models_are_compared_too() -> None:
    assert weights_differ(tiny_model("llama", 1, bits=4), tiny_guide(bits=4).model) is None
    assert weights_differ(tiny_model("llama", 2, bits=4), tiny_guide(bits=4).model) is not None


@dataclass
class Sequence:
    """What one sequence of a batch has read: base and guide may have different prompts."""

    base: list[int]
    guide: list[int]
    alpha: tuple[float, float]


class Schedule:
    """A batch under a shared model, and what every sequence in it should give."""

    def __init__(self, family: str, seed: int) -> None:
        guide = tiny_guide(family)
        self.model = SharedModel(guide)
        self.reference = GuidedModel(tiny_model(family, 1), guide)
        self.rng = np.random.default_rng(seed)
        self.sequences: list[Sequence] = []
        self.cache: list[Any] = []

    def tokens(self, most: int) -> list[int]:
        return [int(t) for t in self.rng.integers(3, VOCABULARY, self.rng.integers(1, most + 1))]

    def alpha(self) -> tuple[float, float]:
        weight = float(self.rng.choice([0.0, 0.25, 0.6, 1.0]))
        return weight, 1 - weight

    def add(self, sequence: Sequence, cache: list[Any]) -> None:
        self.cache = _extend_cache(self.cache, _merge_caches([cache]))
        self.sequences.append(sequence)

    def join(self) -> None:
        base = self.tokens(12)
        guide = base if self.rng.random() < 0.5 else self.tokens(12)
        sequence = Sequence(base, guide, self.alpha())
        cache = self.model.make_cache(sequence.alpha)
        prefill(self.model, cache, [*base, 0], [*guide, 0])
        self.add(sequence, cache)

    def take_out(self, i: int) -> tuple[Sequence, list[Any]]:
        cache = [entry.extract(i) for entry in self.cache]
        sequence = self.sequences.pop(i)
        keep = [j for j in range(len(self.sequences) + 1) if j != i]
        if keep:
            for entry in self.cache:
                entry.filter(keep)
        else:
            self.cache = []
        return sequence, cache

    def leave(self, i: int) -> None:
        self.take_out(i)

    def trim(self, i: int) -> None:
        sequence, cache = self.take_out(i)
        most = min(len(sequence.base), len(sequence.guide)) - 1
        n = int(self.rng.integers(0, most + 1))
        if rewind(cache, n) and n:
            sequence.base, sequence.guide = sequence.base[:-n], sequence.guide[:-n]
        self.add(sequence, cache)

    def switch(self, i: int) -> None:
        """Another α: the guide's rows are read again, the base's are kept."""
        sequence, cache = self.take_out(i)
        sequence.alpha = self.alpha()
        base, _ = self.model.split_cache(cache)
        guide = self.model.guide.make_cache(sequence.alpha)
        read(self.model.guide, sequence.guide, guide)
        self.add(sequence, self.model.join_cache(base, guide))

    def step(self) -> None:
        """All sequences read a token; every one must give the logits of its whole text, read at once by two models."""
        tokens = self.rng.integers(3, VOCABULARY, len(self.sequences)).tolist()
        logits = self.model(mx.array(tokens)[:, None], cache=self.cache)[:, -1]
        for row, token, sequence in zip(logits, tokens, self.sequences, strict=True):
            sequence.base, sequence.guide = [*sequence.base, token], [*sequence.guide, token]
            base = self.reference.base(mx.array([sequence.base]))[0, -1]
            guide = self.reference.guide(mx.array([sequence.guide]), alpha=sequence.alpha)[0, -1]
            np.testing.assert_allclose(row, base + guide, rtol=1e-3, atol=2e-3)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(["llama", "gemma3_text", "jamba", "falcon_h1"]),
    st.integers(0, 2**16),
    st.lists(st.sampled_from(["join", "leave", "trim", "switch", "step"]), min_size=6, max_size=14),
)
def test_random_schedules_of_joins_leaves_trims_and_switches(family: str, seed: int, actions: list[str]) -> None:
    schedule = Schedule(family, seed)
    schedule.join()
    for action in actions:
        if action == "join":
            schedule.join()
        elif not schedule.sequences:
            continue
        elif action == "step":
            schedule.step()
        else:
            getattr(schedule, action)(int(schedule.rng.integers(len(schedule.sequences))))
    if schedule.sequences:
        schedule.step()
