"""Settings declared once: the limits of their values, and ``~``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parm_mlx.errors import ConfigError
from parm_mlx.ranges import Real, Whole
from parm_mlx.settings import PATH, TEXT, Choice, Items, OrWord, SamplingSettings, Switch, check, read_settings, setting

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LIMITS = [Whole(-3, 5), Real(0.5, 2, or_zero=True), TEXT, PATH, Switch(), Choice("a", "b"), Items(Whole(0, 9))]


@given(ANYTHING | st.text("0123456789eE+-._ xnaif", max_size=12))
def test_any_value_is_read_or_refused(value: Any) -> None:
    for limits in LIMITS:
        try:
            found = limits.read(value)
        except ValueError:
            continue
        assert limits.read(found) == found


@pytest.mark.parametrize("value", ["", "caf\udce9", True, None, ["a"], {"a": 1}])
def test_what_is_not_text(value: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        TEXT.read(value)


def test_the_home_folder_is_expanded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder named ~x stays what it is, whoever expands the path again."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert PATH.read("~/models") == str(tmp_path / "models")
    assert PATH.read(Path("~")) == str(tmp_path)
    assert PATH.read("a/~") == "a/~"
    assert PATH.read("owner/name") == "owner/name"
    assert Path(PATH.read("./~x")).expanduser() == tmp_path / "~x"
    with pytest.raises(ValueError, match="unknown home folder, '~nosuchuser'"):
        PATH.read("~nosuchuser/x")


@dataclass(frozen=True)
class Tea:
    """Settings to be read."""

    name: str = setting("", "Must be given.")
    leaves: int = setting(2, "Spoons.", Whole(1, 9))
    kind: Literal["green", "black"] | None = setting(None, "Kind.")
    milk: bool = setting(False, "With milk.")


def test_all_problems_of_settings_are_listed() -> None:
    assert check(Tea(leaves="x", kind="blue", milk="yes")) == [  # type: ignore[arg-type]
        "name is missing",
        "leaves must be a whole number from 1 to 9, got 'x'",
        "kind must be 'green' or 'black', got 'blue'",
        "milk must be true or false, got 'yes'",
    ]
    tea = Tea("mine", "3")  # type: ignore[arg-type]
    assert check(tea) == []
    assert tea == Tea("mine", 3)


def test_a_word_beside_numbers() -> None:
    either = OrWord(Whole(1, 9), "even")
    assert [either.read(value) for value in ("even", "3", 9)] == ["even", 3, 9]
    for wrong in ("odd", 10, None):
        with pytest.raises(ValueError, match=r"^must be 'even' or a whole number from 1 to 9, got "):
            either.read(wrong)


def test_numbers_of_sampling() -> None:
    assert SamplingSettings(temp="0.5").temp == 0.5  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"top_p must be .*; min_p must be"):
        SamplingSettings(top_p=2, min_p=float("nan"))


@pytest.mark.parametrize("content", ["[" * 100_000, "? [a]\n: b", "3: x", "leaves: " + "9" * 5000, "a: !!python/x 1"])
def test_hostile_yaml_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "tea.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "tea.yaml", Tea)
    assert "tea.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
