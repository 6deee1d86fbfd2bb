from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache
from tiny import tiny_model

from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance.generate import generate_batch, stream
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.mlxlm import context_length, limit_caches, models

PROMPT = [3, 9, 4, 27, 5]


def greedy(model: object, cache: list[object], count: int = 40) -> list[int]:
    steps = generate_step(mx.array(PROMPT), model, max_tokens=count, prompt_cache=cache)
    return [int(token) for token, _ in steps]


def test_a_limited_cache_keeps_the_first_tokens_and_the_last() -> None:
    model = tiny_model()
    rotating = greedy(model, [RotatingKVCache(16, keep=4) for _ in model.layers])
    plain = greedy(model, make_prompt_cache(model))
    limit_caches(model, max_kv_size=16)
    cache = make_prompt_cache(model)
    assert greedy(model, cache) == rotating != plain
    assert all(type(entry) is RotatingKVCache and entry.keys.shape[2] <= 16 for entry in cache)


def test_quantised_caches_take_fewer_bytes_and_hardly_change_the_logits() -> None:
    model = tiny_model(hidden_size=128, num_attention_heads=2, num_key_value_heads=2)
    tokens = mx.array([PROMPT * 20])
    cache = make_prompt_cache(model)
    expected = model(tokens, cache=cache)
    assert all(type(entry) is KVCache for entry in cache)
    sizes, errors = [sum(entry.nbytes for entry in cache)], []
    for bits in (8, 4):
        limit_caches(model, kv_bits=bits)
        cache = make_prompt_cache(model)
        assert all(type(entry) is QuantizedKVCache and entry.bits == bits for entry in cache)
        errors.append(float(mx.abs(model(tokens, cache=cache) - expected).max()))
        sizes.append(sum(entry.nbytes for entry in cache))
        del model.make_cache
    assert errors[0] < 0.02 * float(mx.abs(expected).max())
    assert errors[0] < errors[1]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * 1.5 * sizes[2]


def test_other_entries_stay_and_narrow_heads_are_refused() -> None:
    mamba = tiny_model("mamba")
    kinds = [type(entry) for entry in make_prompt_cache(mamba)]
    limit_caches(mamba, max_kv_size=16)
    assert [type(entry) for entry in make_prompt_cache(mamba)] == kinds
    with pytest.raises(ModelError, match="none of this kind"):
        limit_caches(mamba, kv_bits=4)
    with pytest.raises(ModelError, match="heads have 12 numbers"):
        limit_caches(tiny_model(hidden_size=24, num_attention_heads=2, num_key_value_heads=2), kv_bits=4)


@pytest.mark.parametrize("base", ["base_lm", "arm_base"])
def test_guided_answers_with_limited_caches_are_the_same_alone_and_together(
    official: Path, official_parm: Path, base: str
) -> None:
    model, tokenizer, other = load_with_tokenizers(official / base, official_parm, max_kv_size=16)
    prompter = Prompter(tokenizer, other)
    requests = [
        Request(prompter(text), alpha, Sampling()) for text in ("Hi", "Tell me") for alpha in ((0.5, 0.5), None)
    ]
    together = sorted(generate_batch(model, tokenizer, requests, 30), key=lambda answer: answer.index)
    alone = [next(iter(generate_batch(model, tokenizer, [request], 30))) for request in requests]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_limits_that_contradict_each_other_are_refused(official: Path, official_parm: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        load_with_tokenizers(official / "base_lm", official_parm, kv_bits=4, max_kv_size=32)
    with pytest.raises(InputError, match="must be 2, 3"):
        load_with_tokenizers(official / "base_lm", official_parm, kv_bits=7)


def test_an_answer_ends_where_the_positions_do(official: Path, official_parm: Path) -> None:
    model, tokenizer, other = load_with_tokenizers(official / "base_lm", official_parm)
    model.base.args.max_position_embeddings = 24
    prompt = Prompter(tokenizer, other)("Hi")
    room = 24 - max(len(prompt.base), len(prompt.guide))
    (answer,) = generate_batch(model, NoEnd(tokenizer), [Request(prompt, (0.5, 0.5), Sampling())], 100)  # type: ignore[arg-type]
    assert (len(answer.tokens), answer.finish_reason) == (room, "length")
    pieces = list(stream(model, NoEnd(tokenizer), Request(prompt, (0.5, 0.5), Sampling()), 100))  # type: ignore[arg-type]
    assert (len(pieces), pieces[-1].finish_reason) == (room, "length")


class NoEnd:
    """A tokenizer whose answers do not end."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer, self.eos_token_ids = tokenizer, frozenset[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


def test_positions_of_gpt_2_and_a_window_that_is_not_kept() -> None:
    gpt2 = tiny_model("gpt2")
    assert context_length(gpt2) == gpt2.args.n_positions
    model = tiny_model("llama", max_position_embeddings=512, num_attention_heads=2, num_key_value_heads=2)
    setattr(model, models._CONFIG, {"model_type": "mistral", "sliding_window": 16})
    for limits in ({}, {"kv_bits": 8}, {"max_kv_size": 64}):
        limit_caches(model, **limits)
        assert context_length(model) == 16, limits
