"""Fingerprints of models and adapters on disk: they tell whether those are still the same as when a run began.

Of settings, tokenizer and templates all bytes count. Of weights the header of each file counts, and at most 64 KiB
spread over each tensor. That takes less than a second, and finds weights that were trained, scaled, cast, quantised or
fused. A few numbers changed in the middle of a large tensor may go unnoticed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from parm_mlx.files import parse_json

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
    """Returns the fingerprint of a model or adapter directory, of safetensors or else pickled weights.

    Returns:
        ``"weights"`` and the name of every file of settings, each with 16 hexadecimal digits.
    """
    files = sorted(path for pattern in _SETTINGS for path in directory.glob(pattern) if path.is_file())
    weights = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    return {
        "weights": _weights(weights),
        **{str(path.relative_to(directory)): digest(path.read_bytes()) for path in files},
    }


def directory_digest(directory: Path) -> str:
    """Returns the fingerprint of a directory as one text: 16 hexadecimal digits."""
    return digest(json.dumps(fingerprint(directory), sort_keys=True).encode())


def digest(content: bytes) -> str:
    """Returns 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Returns the differences of two fingerprints: by name, the digests before and now, or None."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names}


def _weights(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            for start, end, blocks in _spans(path):
                whole.update(f"{start} {end}\n".encode())
                for block in _sample(file, start, end, blocks):
                    whole.update(block)
    return whole.hexdigest()[:_DIGITS]


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Reads type, shape and place of each tensor of a safetensors file, and ``__metadata__``; empty if unreadable."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = parse_json(file.read(min(length, path.stat().st_size)).decode())
        return {str(name): dict(entry) for name, entry in entries.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _spans(path: Path) -> list[tuple[int, int, int]]:
    """The parts of a file, each with the number of blocks to read of it: a header whole, then every tensor."""
    entries, size = safetensors_header(path), path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    try:
        offsets = sorted(entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__")
        spans = [(start + first, start + last, BLOCKS) for first, last in offsets]
        whole = all(type(first) is type(last) is int for first, last in offsets)
        readable = bool(entries) and whole and all(start <= first <= last <= size for first, last, _ in spans)
    except (ValueError, KeyError, TypeError):
        readable = False
    return [(0, start, start // BLOCK + 1), *spans] if readable else [(0, size, BLOCKS_WITHOUT_HEADER)]


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
