"""Fingerprints of directories: what counts as a change, and what does not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from parm_mlx.fingerprint import changes, fingerprint

ROWS = 300  # 300 × 256 float32 numbers are more than what is read of a tensor


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save(folder, mx.random.normal((ROWS, 256), key=mx.random.key(0)))
    return folder


def save(folder: Path, weight: mx.array) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), {"a.weight": weight, "b.weight": weight[0]})


def edit_weight(change: Callable[[mx.array], mx.array]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = mx.load(str(folder / "model.safetensors"))
        assert isinstance(tensors, dict)
        weight = mx.array(tensors["a.weight"])
        mx.eval(weight)
        save(folder, change(weight))

    return edit


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (edit_weight(lambda weight: weight * 1.1), ["weights"]),
        (edit_weight(lambda weight: weight + 1e-6), ["weights"]),
        (edit_weight(lambda weight: weight.astype(mx.float16)), ["weights"]),
        (edit_weight(lambda weight: mx.concatenate([weight[:-1], mx.zeros((1, 256))])), ["weights"]),
        (lambda folder: (folder / "config.json").write_text('{"a": 1}'), ["config.json"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), ["chat_template.jinja"]),
        (lambda folder: (folder / "README.md").write_text("x"), []),
        (lambda folder: (folder / "trainer_state.json").write_text("{}"), []),
    ],
)
def test_changes_are_named(model: Path, edit: Callable[[Path], None], names: list[str]) -> None:
    before = fingerprint(model)
    edit(model)
    assert list(changes(before, fingerprint(model))) == names


def test_a_moved_directory_is_the_same(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    assert fingerprint(Path(shutil.move(model, tmp_path / "elsewhere"))) == before


def test_broken_and_pickled_weights_have_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100_000))
    pickled = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert fingerprint(tmp_path) != pickled
