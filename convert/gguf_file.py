"""GGUF files: metadata and tensors of llama.cpp's format, versions 2 and 3, little-endian.

Every count, length and offset is checked against the size of the file before it is used, so that a truncated or hostile
file is one clear line. Readers that exist trust such numbers, and abort the process or allocate what they say.
"""

import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as TensorType
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from parm_mlx.errors import ModelError
from parm_mlx.files import expanded, is_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file.

    Attributes:
        type: The format of its blocks.
        shape: Its dimensions, the last one contiguous, as in NumPy.
        blocks: (…, bytes of a row) uint8, the rows as they are in the file.
    """

    type: TensorType
    shape: tuple[int, ...]
    blocks: NDArray[np.uint8]


@dataclass(frozen=True)
class GGUF:
    """The content of a GGUF file, or of all parts of a split one: metadata by key and tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def is_gguf(path: str | Path) -> bool:
    """Returns True if a path is that of a file called ``.gguf``, or of a file that begins like one."""
    file = expanded(path, ModelError)
    if not is_file(file, ModelError) or not file.is_file():  # opening a pipe would wait for its writer
        return False
    if file.suffix.lower() == ".gguf":
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GGUF:
    """Reads a GGUF file; of a split one, any part stands for all. Tensors stay on the disk until they are used.

    Raises:
        ModelError: A file is missing, is not GGUF, is truncated, or holds what the format does not allow.
    """
    files = _parts(path)
    contents = [_read(file) for file in files]
    metadata, tensors = contents[0]
    for file, (_, more) in zip(files[1:], contents[1:], strict=True):
        if twice := sorted(tensors.keys() & more.keys()):
            raise ModelError(f"{file}: tensor {twice[0]!r} is in another part, too")
        tensors |= more
    expected = metadata.get("split.tensors.count", len(tensors))
    if metadata.get("split.count", len(files)) != len(files) or expected != len(tensors):
        raise ModelError(f"{path}: the parts hold {len(tensors)} tensors in {len(files)} files, not what they say")
    return GGUF(path, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named[3])
    if not 1 <= int(named[2]) <= count:
        raise ModelError(f"{path}: there is no part {int(named[2])} of {count}")
    files = [path.with_name(f"{named[1]}-{i:05}-of-{named[3]}.gguf") for i in range(1, count + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(f"{path} is one of {count} parts, and {listed} is missing", hint="fetch all parts")
    return files


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise ModelError(f"{path} is not a GGUF file: it is empty") from None
    return _Reader(path, view).read()


class _Reader:
    """A position in a file that is mapped into memory."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at = path, view, 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.view[: len(MAGIC)] != MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
        self.at = len(MAGIC)
        version = self.number("I")
        if version not in VERSIONS:
            big = " (the file is big-endian)" if version >> 16 and not version & 0xFFFF else ""
            raise ModelError(f"{self.path} is GGUF of version {version}{big}; versions 2 and 3 can be read")
        tensor_count, count = self.count(24), self.count(13)
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string("a key")
            if key in metadata:
                raise self.broken(f"the key {key!r} occurs twice")
            metadata[key] = self.value(key, self.number("I"))
        return metadata, self.tensors(tensor_count, metadata.get("general.alignment", 32))

    def tensors(self, count: int, alignment: Any) -> dict[str, Tensor]:
        if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.broken(f"general.alignment is {alignment!r}, not a power of two")
        places: dict[str, tuple[TensorType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self.string("the name of a tensor")
            if name in places:
                raise self.broken(f"tensor {name!r} occurs twice")
            places[name] = self.place(name)
        start = -(-self.at // alignment) * alignment
        return {name: self.tensor(name, *place[:2], start + place[2]) for name, place in places.items()}

    def place(self, name: str) -> tuple[TensorType, tuple[int, ...], int]:
        """Type, shape and offset of a tensor."""
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.broken(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        number, offset = self.number("I"), self.number("Q")
        try:
            return TensorType(number), shape, offset
        except ValueError:
            raise ModelError(f"{self.path}: tensor {name!r} is of type {number}, which is not known here") from None

    def tensor(self, name: str, kind: TensorType, shape: tuple[int, ...], start: int) -> Tensor:
        values, size = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % values:
            raise self.broken(f"tensor {name!r} has shape {shape}, and {kind.name} holds {values} values in a block")
        row = shape[-1] // values * size
        length = prod(shape[:-1]) * row
        if start + length > len(self.view):
            raise self.broken(f"tensor {name!r} ends at byte {start + length:,} of {len(self.view):,}")
        blocks = np.frombuffer(self.view, np.uint8, length, start).reshape(*shape[:-1], row)
        return Tensor(kind, shape, blocks)

    def value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            raise self.broken(f"{key!r} is of type {kind}, which GGUF does not have")
        kind = self.number("I")
        if kind == _STRING:
            return [self.string(key) for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise self.broken(f"{key!r} is an array of type {kind}, which is not supported")
        return list(self.numbers(_SCALARS[kind], self.count(struct.calcsize(_SCALARS[kind]))))

    def count(self, size: int) -> int:
        """A number of things, each of which takes ``size`` bytes or more."""
        count = int(self.number("Q"))
        if count * size > len(self.view) - self.at:
            raise self.broken(f"it announces {count:,} entries where {len(self.view) - self.at:,} bytes are left")
        return count

    def string(self, what: str) -> str:
        length = self.count(1)
        self.at += length
        try:
            return self.view[self.at - length : self.at].decode()
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not UTF-8") from None

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> Sequence[Any]:
        """Numbers in :mod:`struct`'s notation."""
        form = struct.Struct(f"<{count}{code}")
        if self.at + form.size > len(self.view):
            raise self.broken("it ends in the middle")
        self.at += form.size
        return form.unpack_from(self.view, self.at - form.size)

    def broken(self, why: str) -> ModelError:
        return ModelError(f"{self.path} is not a readable GGUF file: {why}", hint="fetch it again")
