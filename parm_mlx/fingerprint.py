"""Fingerprints of models and adapters on disk: whether they are still what a run began with.

Settings, tokenizer and templates are told by all their bytes, wherever the directory lies. Weights are told by the
header of each file and a sample of every tensor, at most 64 KiB spread over it. That takes less than a second for
hundreds of tensors, and finds weights that were trained, scaled, cast, quantised or fused. A few numbers changed in the
middle of a large tensor may go unnoticed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096
BLOCKS = 16  # of a tensor
BLOCKS_WITHOUT_HEADER = 4096  # of a file whose tensors are not known
_DIGITS = 16
_SETTINGS = (
    "*.jinja",
    "*.tiktoken",
    "adapter_config.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "reward.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.*",
)


def fingerprint(directory: Path) -> dict[str, str]:
    """The fingerprint of a model or adapter directory.

    Args:
        directory: A directory that holds safetensors files, or else pickled weights.

    Returns:
        ``"weights"`` and the name of every file of settings, each with 16 hexadecimal digits.
    """
    files = sorted(path for pattern in _SETTINGS for path in directory.glob(pattern) if path.is_file())
    named = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    weights = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    return {"weights": _weights(weights), **{name: digest(content) for name, content in named.items()}}


def directory_digest(directory: Path) -> str:
    """The fingerprint of a directory in one: 16 hexadecimal digits."""
    return digest(json.dumps(fingerprint(directory), sort_keys=True).encode())


def digest(content: bytes) -> str:
    """16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What differs between two fingerprints: by name, the digests before and now, None where there is none."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names}


def _weights(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            for start, end, blocks in _spans(file, size):
                whole.update(f"{start} {end}\n".encode())
                for block in _sample(file, start, end, blocks):
                    whole.update(block)
    return whole.hexdigest()[:_DIGITS]


def _spans(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a file, each with the number of blocks to read of it: a header whole, then every tensor."""
    header = 8 + int.from_bytes(file.read(8), "little")
    try:
        entries = json.loads(file.read(header - 8) if header <= size else b"")
        offsets = sorted(entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__")
        spans = [(header + start, header + end, BLOCKS) for start, end in offsets]
    except (ValueError, AttributeError, KeyError, TypeError):
        yield 0, size, BLOCKS_WITHOUT_HEADER
        return
    yield 0, header, header // BLOCK + 1
    yield from spans


def _sample(file: BinaryIO, start: int, end: int, blocks: int) -> Iterator[bytes]:
    """A part of a file, or so many blocks of it, evenly spread, the first and the last among them."""
    length = end - start
    if length <= blocks * BLOCK:
        file.seek(start)
        yield file.read(length)
        return
    for i in range(blocks):
        file.seek(start + (length - BLOCK) * i // (blocks - 1))
        yield file.read(BLOCK)
