"""Small tokenizers of many kinds, made with the tokenizers library, as mlx-lm wraps them."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from parm_mlx.mlxlm import TokenizerWrapper

CORPUS = [
    "How do I cook rice? Rinse it, use two cups of water, and keep the lid on.",
    "def f(x):\n    return [i**2 for i in range(x)]\n\nprint(f(10))",
    "今天天气很好 😀🎉 مرحبا 1234567890 3.14159      many     spaces",
    "The strawberry jam was good; I'm glad that you've asked. It is a lovely question!",
] * 3
END = "</s>"


def byte_level(size: int, digits: bool = False, ignore_merges: bool = False, added: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=not digits and not added)
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}" if ignore_merges else r"\p{N}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level]) if digits else level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END, "<|x|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer


def sentencepiece(size: int, metaspace: bool = False) -> Tokenizer:
    """BPE over "▁" with byte fallback, as Llama 2 has it; or with the pre-tokenizer that newer files have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    lines = [line.replace("\n", " ") for line in CORPUS]
    counted = Counter("▁" + "▁".join(lines).replace(" ", "▁"))
    alphabet = sorted(counted, key=lambda letter: (-counted[letter], letter))[:60]  # the trainer breaks ties at random
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", END, *bytes_], limit_alphabet=60, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(lines, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if not each["content"].startswith("<0x")]
    if metaspace:
        content["normalizer"] = None
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], Any]) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


def wrapped(tokenizer: Tokenizer, end: str | None = END) -> TokenizerWrapper:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    return TokenizerWrapper(fast, eos_token_ids=None if end is None else [tokenizer.token_to_id(end)])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(400),
    "digits one by one": lambda: byte_level(600, digits=True),
    "digits in threes, ignore_merges": lambda: byte_level(500, digits=True, ignore_merges=True),
    "added tokens": lambda: byte_level(350, added=("<think>", "strawberry", "    ")),
    "SentencePiece": lambda: sentencepiece(420),
    "SentencePiece, newer": lambda: sentencepiece(380, metaspace=True),
}


@cache
def tokenizer_of(kind: str) -> TokenizerWrapper:
    """The tokenizer of a kind; ties in training make another one each time."""
    return wrapped(KINDS[kind]())
