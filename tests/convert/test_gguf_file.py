"""GGUF files that are split, broken, or no files at all."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from gguf_writer import (
    Arrays,
    byte_level_metadata,
    llama_tensors,
    metadata_of,
    write_gguf,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from parm_mlx.convert.gguf_file import read_gguf
from parm_mlx.convert.gguf_model import read_model
from parm_mlx.convert.gguf_tokenizer import write_tokenizer
from parm_mlx.errors import ModelError

Run = Callable[..., tuple[int, str, str]]


def header(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GG", "does not begin with GGUF"),
        (header(magic=b"GGML"), "does not begin with GGUF"),
        (b"GGUF", "ends in the middle"),
        (header(version=1), "GGUF of version 1;"),
        (header(version=3 << 24), "(the file is big-endian)"),
        (header(keys=2**63), "it announces 9,223,372,036,854,775,808 entries where 0 bytes are left"),
        (header(tensors=2**64 - 1), "it announces 18,446,744,073,709,551,615 entries"),
        (header(keys=1) + struct.pack("<Q", 2**62) + bytes(8), "entries where 8 bytes are left"),
        (header(keys=1) + key(b"k", 99, b""), "'k' is of type 99, which GGUF does not have"),
        (header(keys=1) + key(b"\xff", 4, bytes(4)), "a key is not UTF-8"),
        (header(keys=2) + key(b"k", 4, bytes(4)) * 2, "the key 'k' occurs twice"),
        (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 8, 2**60)), "entries where 0 bytes are left"),
        (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 9, 1)), "an array of type 9, which is not supported"),
        (header(tensors=1) + key(b"t", 9, bytes(60)), "tensor 't' has 9 dimensions"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 64, 77, 0)), "is of type 77, which is not known here"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 33, 2, 0)), "Q4_0 holds 32 values in a block"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 2**50, 0, 0)), "ends at byte 4,503,599,627,370,5"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 8, 0, 2**63)), "ends at byte 9,223,"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 0, 0, 0)), "has shape (0,)"),
    ],
)
def test_broken_files_are_one_line(run_cli: Run, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    code, out, err = run_cli("convert", tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert [message in line for line in err.splitlines() if line.startswith("error: ")] == [True]


def test_a_file_that_ends_anywhere_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    content = write().read_bytes()
    file = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), *range(400, len(content), len(content) // 60)]:
        file.write_bytes(content[:size])
        with pytest.raises(ModelError):
            read_gguf(file)


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_is_read_or_refused(
    whole: tuple[Path, bytes], changes: list[tuple[int, int]]
) -> None:
    file, content = whole
    changed = bytearray(content)
    for place, byte in changes:
        changed[place % min(len(content), 20_000)] = byte
    file.write_bytes(changed)
    try:
        gguf = read_gguf(file)
        list(read_model(gguf)[1])
        write_tokenizer(gguf, file.parent)
    except ModelError:
        pass


@pytest.fixture(scope="module")
def whole(
    official: Path, config: dict[str, Any], weights: Arrays, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes]:
    """A file to be changed, and its content."""
    file = tmp_path_factory.mktemp("changed") / "m.gguf"
    metadata = metadata_of(config) | byte_level_metadata(official / "arm_base")
    return file, write_gguf(file, metadata, llama_tensors(weights, config), "Q4_0").read_bytes()


def split(file: Path, config: dict[str, Any], tensors: Arrays, metadata: dict[str, Any], count: int = 3) -> list[Path]:
    """The same model in several files; the metadata of the model is in the first."""
    names = list(tensors)
    parts = []
    for i in range(count):
        own = {name: tensors[name] for name in names[i::count]}
        about = {"split.no": i, "split.count": count, "split.tensors.count": len(names)}
        path = file.with_name(f"m-{i + 1:05}-of-{count:05}.gguf")
        parts.append(write_gguf(path, (metadata if i == 0 else {}) | about, own))
    return parts


def test_a_split_file_is_one_model(
    run_cli: Run, metadata: dict[str, Any], weights: Arrays, config: dict[str, Any], official: Path, tmp_path: Path
) -> None:
    """Any part stands for all."""
    parts = split(tmp_path / "m.gguf", config, llama_tensors(weights, config), metadata)
    code, _, err = run_cli("convert", parts[1], "--out", tmp_path / "out")
    assert code == 0, err
    folders = (tmp_path / "out", official / "arm_base")
    ours, theirs = (dict(mx.load(str(folder / "model.safetensors"))) for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
    parts[2].unlink()
    code, out, err = run_cli("convert", parts[0], "--out", tmp_path / "again")
    assert (code, out) == (2, "")
    assert "m-00003-of-00003.gguf is missing" in err


def test_a_pipe_is_not_waited_for(run_cli: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    code, _, err = run_cli("convert", tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert code == 2
    assert "is a file, not a directory" in err
