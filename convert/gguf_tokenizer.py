"""Tokenizers of GGUF files, as the two files that transformers reads.

``gpt2`` is byte-level BPE: how a text is cut into words first is not in the file, only a name for it. ``llama`` is
SentencePiece's BPE, with scores in place of merges.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from parm_mlx.convert.gguf_file import GGUF
from parm_mlx.errors import ModelError
from parm_mlx.ranges import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Texts of control tokens that end a turn where no number in the file says so.
ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<|eom_id|>",
)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2, _DIGITS = "gpt-2", "digits"
_LLAMA3, _QWEN2 = _WORDS % r"\p{N}{1,3}", _WORDS % r"\p{N}"
_OF_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2", "pixtral")
PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4", "mellum"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys((*_OF_LLAMA3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _QWEN2),
    "tekken": _CASED,
}
_BEGINS_WITH_BOS = (*_OF_LLAMA3, "tekken")  # unless the file says otherwise; words of the vocabulary stay whole there


def write_tokenizer(gguf: GGUF, out: Path) -> dict[str, Any]:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

    Returns:
        The ids of special tokens, as ``config.json`` holds them; ``eos_token_id`` lists all that end an answer.

    Raises:
        ModelError: The file has no tokenizer, or one whose way of cutting texts is not known here.
    """
    tokens, types = _vocabulary(gguf)
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(gguf, tokens)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(gguf, tokens, types), True
    else:
        raise ModelError(f"{gguf.path}: tokenizer {shown(kind)} cannot be converted", hint="supported: gpt2 and llama")
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
        if tokenizer.token_to_id(token) != i:
            raise ModelError(f"{gguf.path}: token {shown(token)} occurs twice in the vocabulary")
    special = {name: _special(gguf, name, len(tokens)) for name in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    _add_specials(gguf, tokenizer, tokens, special, adds_bos)
    tokenizer.save(str(out / "tokenizer.json"))
    ends = [special[name] for name in ("eos", "eot", "eom")]
    ends += [i for i, token in enumerate(tokens) if types[i] == CONTROL and token in ENDS]
    eos = list(dict.fromkeys(end for end in ends if end is not None))
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    settings: dict[str, Any] = {
        key: tokens[number] for key, name in named.items() if (number := special[name]) is not None
    }
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if isinstance(template := gguf.metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    ids = {"bos_token_id": special["bos"], "eos_token_id": eos or None, "pad_token_id": special["padding"]}
    return {key: value for key, value in ids.items() if value is not None}


def _vocabulary(gguf: GGUF) -> tuple[list[str], list[int]]:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"{gguf.path} holds no tokenizer (tokenizer.ggml.tokens)")
    types = gguf.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or not all(type(kind) is int for kind in types):
        raise ModelError(f"{gguf.path}: tokenizer.ggml.token_type does not fit the {len(tokens)} tokens")
    return tokens, types


def _special(gguf: GGUF, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = gguf.metadata.get(key)
    if value is None or value == 2**32 - 1:  # llama.cpp's "none"
        return None
    if type(value) is not int or not 0 <= value < count:
        raise ModelError(f"{gguf.path}: {key} is {shown(value)}, not one of the {count} tokens")
    return value


def _add_specials(
    gguf: GGUF, tokenizer: Tokenizer, tokens: list[str], special: dict[str, int | None], adds_bos: bool
) -> None:
    """Lets the tokenizer put BOS before a text, and EOS after it, where the file says so."""
    adds = {
        "bos": gguf.metadata.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": gguf.metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    added = {name: (tokens[number], number) for name in adds if adds[name] and (number := special[name]) is not None}
    if added:
        before, after = ([added[name][0]] if name in added else [] for name in ("bos", "eos"))
        first, second = ([*before, side, *after] for side in ("$A", "$B"))
        pair = [*first, *(f"{piece}:1" for piece in second)]
        tokenizer.post_processor = processors.TemplateProcessing(first, pair, list(added.values()))


def _byte_level(gguf: GGUF, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether it begins with BOS unless the file says otherwise."""
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    words = PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if words is None:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {shown(pre)} is not known here: texts would be cut otherwise than in training",
            hint=f"known: {', '.join(PRE_TOKENIZERS)}",
        )
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelError(f"{gguf.path}: tokenizer.ggml.merges is missing")
    pairs: list[Any] = [tuple(str(merge).split(" ")) for merge in merges]
    known = {token: i for i, token in enumerate(tokens)}
    if odd := [pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= known.keys()]:
        raise ModelError(f"{gguf.path}: merge {shown(' '.join(odd[0]))} is not one of two tokens of the vocabulary")
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=pairs, ignore_merges=pre in _BEGINS_WITH_BOS))
    cut: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words in (_GPT2, _DIGITS))]
    if words == _DIGITS:
        cut.insert(0, pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"))
    elif words != _GPT2:
        cut.insert(0, pre_tokenizers.Split(Regex(words), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre in _BEGINS_WITH_BOS


def _sentencepiece(gguf: GGUF, tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE: of all pairs of neighbours, the one whose token has the best score is merged first."""
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError(f"{gguf.path}: tokenizer.ggml.scores does not fit the {len(tokens)} tokens")
    known = {token: i for i, token in enumerate(tokens)}
    mergeable = [i for i, kind in enumerate(types) if kind == NORMAL and len(tokens[i]) > 1]
    mergeable.sort(key=lambda i: -scores[i])
    merges = [
        (token[:cut], token[cut:])
        for token in (tokens[i] for i in mergeable)
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == UNKNOWN), None)
    bytes_are_tokens = BYTE in types
    model = models.BPE(vocab=known, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_are_tokens)
    tokenizer = Tokenizer(model)
    prefix = gguf.metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend("▁")] * bool(prefix) + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * bool(prefix))
    return tokenizer
