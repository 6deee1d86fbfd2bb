"""The contract with mlx-lm: what parm_mlx.mlxlm relies on beyond the public interface."""

import copy
import inspect

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator, _extend_cache, _merge_caches, generate_step, speculative_generate_step
from mlx_lm.models.cache import _BaseCache, make_prompt_cache, trim_prompt_cache
from tiny import tiny_model

from parm_mlx.mlxlm import PreferenceCache, filter_logprobs, rewind


def rows(*values: float) -> PreferenceCache:
    return PreferenceCache(mx.array([[v, 1 - v] for v in values]))


def test_the_cache_entry_has_every_method_of_mlx_lms_entries() -> None:
    known = {name for name in vars(_BaseCache) if not name.startswith("__")}
    assert known <= {"state", "meta_state", "is_trimmable", "size", "nbytes", "empty", "from_state"}
    for name in ("merge", "extend", "filter", "extract", "trim", "prepare", "finalize"):
        assert callable(getattr(PreferenceCache, name))


def test_the_generators_take_the_arguments_that_are_used() -> None:
    assert {"prompt_cache", "sampler", "max_tokens"} <= inspect.signature(generate_step).parameters.keys()
    assert {"prompt_cache", "num_draft_tokens"} <= inspect.signature(speculative_generate_step).parameters.keys()
    assert {"prompts", "max_tokens", "caches", "samplers"} <= inspect.signature(BatchGenerator.insert).parameters.keys()


def test_rows_are_merged_extended_filtered_and_taken_out() -> None:
    cache = _merge_caches([[rows(0.1)], [rows(0.2)], [rows(0.3)]])[0]
    _extend_cache([cache], [rows(0.4)])
    cache.filter([0, 2, 3])
    assert cache.alpha[:, 0].tolist() == pytest.approx([0.1, 0.3, 0.4])
    assert cache.extract(1).alpha[:, 0].tolist() == pytest.approx([0.3])


def test_what_is_bound_is_kept_until_the_batch_changes() -> None:
    cache, bound = rows(0.1, 0.2), []

    def bind(alpha: mx.array) -> int:
        bound.append(alpha)
        return len(alpha)

    changes = (lambda: None, lambda: None, lambda: cache.filter([1]), lambda: cache.extend(rows(0.5)), lambda: None)
    for change in changes:
        change()
        assert cache.bound(bind) == cache.alpha.shape[0]
    assert len(bound) == 3
    assert cache.bound(len) == 2, "another way of binding has its own"
    assert cache.bound(bind) == 2
    assert len(bound) == 3


def test_a_first_token_of_the_guides_own_is_read_once_and_moves_with_its_row() -> None:
    own = rows(0.2)
    own.replace_first_token(42)
    cache = PreferenceCache.merge([rows(0.1), own])
    cache.extend(rows(0.3))
    cache.filter([1, 2])
    inputs = mx.array([[7, 8], [7, 8]], mx.uint32)
    taken = cache.take_inputs(inputs)
    assert taken.tolist() == [[42, 8], [7, 8]]
    assert taken.dtype == mx.uint32
    assert cache.take_inputs(inputs) is inputs


def test_copies_and_states_are_independent() -> None:
    cache = rows(0.1, 0.2)
    twin = copy.deepcopy(cache)
    twin.filter([1])
    assert cache.alpha.shape == (2, 2)
    restored = rows(0.5)
    restored.state = cache.state
    assert mx.array_equal(restored.alpha, cache.alpha)
    assert restored.bound(lambda alpha: alpha.shape) == (2, 2)
    assert restored.nbytes == 24


def test_rewinding_says_whether_it_could() -> None:
    model = tiny_model()
    cache = make_prompt_cache(model)
    model(mx.array([[1, 2, 3]]), cache=cache)
    assert rewind(cache, 2)
    assert cache[0].offset == 1
    assert rewind([_BaseCache()], 0)
    assert not rewind([_BaseCache()], 1)
    assert trim_prompt_cache(cache, 5) == 1


def test_filters_keep_the_likeliest_tokens() -> None:
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    for settings, kept in (
        ({"top_p": 0.0, "min_p": 0.0, "top_k": 0}, 4),
        ({"top_p": 0.7, "min_p": 0.0, "top_k": 0}, 2),
        ({"top_p": 0.0, "min_p": 0.25, "top_k": 0}, 3),
        ({"top_p": 0.0, "min_p": 0.0, "top_k": 1}, 1),
    ):
        filtered = filter_logprobs(logprobs, **settings)  # type: ignore[arg-type]
        assert int((mx.exp(filtered) > 0).sum().item()) == kept
