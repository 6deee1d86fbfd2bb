"""Files of models and adapters that somebody else wrote, with anything in them: read, or refused with one clear error.

One setting of a working file, or one entry of a safetensors header, is replaced by a value of any kind: nested deeply,
with hundreds of digits, half of a surrogate pair, or of another type.
"""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parm_mlx.convert import peft
from parm_mlx.convert.detect import detect
from parm_mlx.errors import ParmError
from parm_mlx.fingerprint import fingerprint
from parm_mlx.mlxlm import config_rows, context_length, load_tokenizer_alone, load_weights_and_tokenizer
from parm_mlx.pblora import read_adapter

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**63, 10**30, 10**400, -1, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "none", "llama", "../..", "\ud800", "a" * 300, "q_proj", "float16", "*"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "", "default", "0"]), inner),
    max_leaves=5,
)
fuzz = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def spoil(file: Path, content: dict[str, Any], key: str, value: Any) -> None:
    file.write_text(json.dumps(content | {key: value}), encoding="utf-8")


def survives(read: Callable[[], object]) -> None:
    """Only errors that are meant for the user may come out."""
    with suppress(ParmError):
        read()


def read_peft(path: Path) -> object:
    source = detect(path)
    return peft.read(path, source.config)


def load_model(path: Path) -> object:
    detect(path)
    config_rows(path)
    return context_length(load_weights_and_tokenizer(path, lazy=True)[0])


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "parm": ("adapter_config.json", read_adapter),
    "parm_k2": ("adapter_config.json", read_peft),
    "arm_base": ("config.json", load_model),
}
MORE_KEYS = {
    "parm": ("chat_template", "training"),
    "parm_k2": ("peft_type", "bias"),
    "arm_base": (
        *("rope_parameters", "rope_scaling", "layer_types", "quantization", "quantization_config", "text_config"),
        *("sliding_window", "torch_dtype", "dtype", "auto_map", "model_file", "tie_word_embeddings"),
    ),
}


@pytest.fixture
def copied(official: Path, official_parm: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an adapter or a model that a test may change."""

    def copy(name: str) -> Path:
        path = tmp_path / name
        if not path.exists():
            shutil.copytree(official_parm if name == "parm" else official / name, path)
            for file in path.iterdir():
                file.chmod(0o644)
        return path

    return copy


@pytest.mark.parametrize("name", READERS)
@fuzz
@given(data=st.data())
def test_any_value_of_a_setting(name: str, copied: Callable[[str], Path], data: st.DataObject) -> None:
    file, read = READERS[name]
    path = copied(name)
    whole = path / f"{file}.whole"
    if not whole.exists():
        shutil.copy(path / file, whole)
    content = json.loads(whole.read_text())
    key = data.draw(st.sampled_from(sorted({*content, *MORE_KEYS[name]})))
    spoil(path / file, content, key, data.draw(VALUES))
    survives(lambda: read(path))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [nested(100_000), "1" * 5000, "\udc80", "null", "", "\x00", '{"a": 1', "[]"])
def test_a_config_that_is_not_an_object(name: str, copied: Callable[[str], Path], text: str) -> None:
    file, read = READERS[name]
    path = copied(name)
    (path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ParmError):
        read(path)


@fuzz
@given(data=st.data())
def test_any_value_in_a_tokenizer_config(copied: Callable[[str], Path], data: st.DataObject) -> None:
    path = copied("arm_base")
    keys = ["auto_map", "tokenizer_class", "tool_parser_type", "chat_template_type", "chat_template"]
    spoil(path / "tokenizer_config.json", {}, data.draw(st.sampled_from(keys)), data.draw(VALUES))
    survives(lambda: load_tokenizer_alone(path))


@pytest.mark.parametrize("name", ["parm", "parm_k2", "arm_base"])
@fuzz
@given(data=st.data())
def test_any_entry_of_a_safetensors_header(name: str, copied: Callable[[str], Path], data: st.DataObject) -> None:
    path = copied(name)
    (file,) = path.glob("*.safetensors")
    whole = path / "whole"
    if not whole.exists():
        shutil.copy(file, whole)
    content = whole.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    entry = data.draw(st.sampled_from(sorted(header)))
    if isinstance(header[entry], dict) and data.draw(st.booleans()):
        header[entry][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(VALUES)
    else:
        header[entry] = data.draw(VALUES)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", data.draw(st.sampled_from([len(text)] * 3 + [0, 2**63]))) + text + content[end:])
    fingerprint(path)
    survives(lambda: READERS[name][1](path))


@pytest.mark.parametrize("name", ["parm", "parm_k2", "arm_base"])
@pytest.mark.parametrize("text", [nested(100_000), "1" * 5000, "[]", "{"])
def test_a_header_that_is_not_an_object(name: str, copied: Callable[[str], Path], text: str) -> None:
    path = copied(name)
    (file,) = path.glob("*.safetensors")
    file.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    fingerprint(path)
    with pytest.raises(ParmError):
        READERS[name][1](path)
