"""Tokenizers of GGUF files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import (
    Arrays,
)

from parm_mlx.convert.gguf_file import read_gguf
from parm_mlx.convert.gguf_tokenizer import PRE_TOKENIZERS, write_tokenizer

PAGE = "Hello, world! It's 2024: 12,345.67 € — naïve façade\n\n  two  spaces\t\ttabs \r\n日本語 😀 e\u0301 ½ 'LL </s>y"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", " 2024", "'s", "\n\n ", " x"]),
        ("smollm", ["a", " ", "2", "0", "2", "4", "'s", "\n\n ", " x"]),
        ("llama-bpe", ["a", " ", "202", "4", "'s", "\n\n", " ", " x"]),
        ("qwen2", ["a", " ", "2", "0", "2", "4", "'s", "\n\n", " ", " x"]),
        ("tekken", ["a", " ", "2", "0", "2", "4", "'s", "\n\n", " ", " x"]),
    ],
)
def test_texts_are_cut_as_the_name_says(
    write: Callable[..., Path], tmp_path: Path, pre: str, expected: list[str]
) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(read_gguf(write(tokenizer__ggml__pre=pre)), tmp_path)
    text = "a 2024's\n\n  x"
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in words] == expected


def test_every_known_pre_tokenizer_can_be_written(write: Callable[..., Path], tmp_path: Path) -> None:
    for pre in PRE_TOKENIZERS:
        write_tokenizer(read_gguf(write(tokenizer__ggml__pre=pre)), tmp_path)


def test_sentencepiece_gives_the_ids_of_the_library(
    write: Callable[..., Path], weights: Arrays, config: dict[str, Any], tmp_path: Path
) -> None:
    """A BPE model of SentencePiece itself, trained on this repository's words."""
    import sentencepiece

    text = (Path(__file__).read_text() + PAGE).replace("</s>", "")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=512,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    count = library.vocab_size()
    types = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
        for i in range(count)
    ]
    file = write(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre=...,
        tokenizer__ggml__merges=...,
        tokenizer__ggml__tokens=[library.id_to_piece(i) for i in range(count)],
        tokenizer__ggml__scores=[float(library.get_score(i)) for i in range(count)],
        tokenizer__ggml__token_type=types,
    )
    write_tokenizer(read_gguf(file), tmp_path)
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "kept.json")
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(tmp_path / "kept.json"))
    for sample in (PAGE.replace("</s>", "."), " leading", "", "x", "déjà vu 漢字", text[:3000]):
        own = ours.encode(sample).ids
        assert own == [1, *library.encode(sample)]
        assert ours.decode(own) == sample


def test_every_token_that_ends_a_turn_is_known(
    write: Callable[..., Path], metadata: dict[str, Any], tmp_path: Path
) -> None:
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[500], tokens[501] = "<|eot_id|>", "<|im_end|>"
    types = list(metadata["tokenizer.ggml.token_type"])
    types[500] = types[501] = 3
    merges = [m for m in metadata["tokenizer.ggml.merges"] if {*m.split(), m.replace(" ", "")} <= {*tokens}]
    more = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types, "tokenizer__ggml__merges": merges}
    ids = write_tokenizer(read_gguf(write(**more, tokenizer__ggml__eot_token_id=7)), tmp_path)
    assert ids == {"bos_token_id": 1, "eos_token_id": [2, 7, 500, 501]}
