import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parm_mlx import files
from parm_mlx.errors import ConfigError, InputError, ModelError, RunError
from parm_mlx.files import resolve


def test_a_local_directory_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.update(repo_id=repo_id, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("some-owner/some-model") == tmp_path
    assert asked["repo_id"] == "some-owner/some-model"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["patterns"])


def test_no_network_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not on this machine, and the hub cannot be reached"):
        resolve("some-owner/some-model-that-nobody-has")


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "a/b/c", "/nowhere/at-all"])
def test_what_is_neither_path_nor_id_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such directory"):
        resolve(source)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve(file)


def test_a_tilde_is_expanded_and_impossible_paths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert files.expanded("~/a") == Path("/home/me/a")
    for path in ("~no-such-user/x", "a\0b", "a\udcffb"):
        with pytest.raises(ModelError):
            files.expanded(path, ModelError)


def test_what_cannot_be_looked_at_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.is_dir(tmp_path)
    assert not files.is_file(tmp_path)
    assert not files.is_dir(tmp_path / "nothing" / "below")
    with pytest.raises(InputError, match="File name too long"):
        files.is_dir(tmp_path / ("x" * 300))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ModelError, match="locked cannot be read: Permission denied"):
        resolve(tmp_path / "locked")


def test_a_pipe_is_read_and_one_without_a_writer_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert files.read_text(tmp_path / "pipe", "config", InputError) == ""
    reading, writing = os.pipe()
    os.write(writing, b"a: 1")
    os.close(writing)
    assert files.read_yaml(Path(f"/dev/fd/{reading}"), "config", InputError) == {"a": 1}
    os.close(reading)


def test_a_text_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_TEXT", 2**20)
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        files.read_text(Path("/dev/zero"), "config", InputError)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"a": 1' + b"0" * 400 + b"}",
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b"{'a': 1}",
        b"[1]",
        b"",
    ],
)
def test_json_that_would_fail_later_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        files.read_json(tmp_path / "config.json", "model", ModelError)


@pytest.mark.parametrize(
    "content",
    [
        "a: " + "[" * 5000,
        "a: " + "9" * 400,
        "a: " + "9" * 5000,
        'a: "\\ud800"',
        "a: &x [*x]",
        "a: &x [1]\nb: [*x, *x]",
        "a: !!python/object:os.system {}",
        "a: !!int ''",
        "a: !!timestamp x",
        "a: !!bool x",
        "? [1]\n: 2",
    ],
)
def test_yaml_that_would_fail_later_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml is not valid YAML"):
        files.read_yaml(tmp_path / "c.yaml", "config", ConfigError)


def test_numbers_and_texts_of_real_files_are_read(tmp_path: Path) -> None:
    """tokenizer_config.json has int(1e30) where there is no limit; emoji are pairs of surrogates in ASCII JSON."""
    content = '\ufeff{"model_max_length": 1000000000000000019884624838656, "emoji": "\\ud83d\\ude00"}'
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    expected = {"model_max_length": int(1e30), "emoji": "😀"}
    assert files.read_json(tmp_path / "c.json", "tokenizer", ModelError) == expected


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=3))
def test_what_json_writes_is_read_as_it_was(value: dict[str, object]) -> None:
    assert files.parse_json(json.dumps(value)) == value


@pytest.fixture(scope="module")
def some_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "file"


SIGNS = st.text(st.sampled_from("{}[]\":,*&!?|>-'\\ \n#@%0e9a\u2028\x1b") | st.characters(codec="utf-8"), max_size=60)


@given(st.binary(max_size=60) | SIGNS.map(str.encode))
def test_readers_return_or_raise_an_input_error(some_file: Path, content: bytes) -> None:
    some_file.write_bytes(content)
    readers: list[Callable[..., object]] = [files.read_text, files.read_json, files.read_yaml]
    for read in readers:
        with suppress(InputError):
            read(some_file, "file", InputError)


def test_a_text_of_the_terminal_is_utf_8_in_any_locale() -> None:
    """Where the locale is ASCII, Python keeps the bytes of é as two halves of surrogate pairs."""
    assert files.decoded("caf\udcc3\udca9 ☕", "a text") == "café ☕"
    for text in ("caf\udce9", "\ud800"):
        with pytest.raises(InputError, match="a text is not UTF-8: "):
            files.decoded(text, "a text")
