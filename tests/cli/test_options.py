"""The flags of all commands, and how they are made of declared settings."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from fuzz_cli import RECIPES, commands
from typer.main import get_command

from parm_mlx.cli.app import app
from parm_mlx.cli.options import flag, grouped, redeclared
from parm_mlx.ranges import Real, Whole
from parm_mlx.settings import TEXT, Items, setting
from parm_mlx.training.config import TrainConfig

Run = Callable[..., tuple[int, str, str]]

OUT_OF_ANY_RANGE = ("nan", "inf", "-inf", "1e400", "-1e400", "9" * 400, "9" * 5000, "x", "1,0x")


def options() -> list[tuple[str, str, Any]]:
    """Every option that takes a value: the command, the flag, the parameter."""
    group: Any = get_command(app)
    found = dict(group.commands)
    found |= {f"data {name}": command for name, command in found.pop("data").commands.items()}
    return [
        (name, param.opts[0], param)
        for name, command in found.items()
        for param in command.params
        if param.param_type_name == "option" and not param.is_flag
    ]


OPTIONS = options()
NUMBERS = [(command, name) for command, name, param in OPTIONS if param.min is not None]


def assert_refused(run_cli: Run, command: str, name: str, value: str) -> None:
    code, out, err = run_cli(*command.split(), name, value)
    assert (code, out) == (2, ""), (command, name, value)
    first, *rest = err.splitlines()
    assert first.startswith(f"error: Invalid value for '{name}'"), err
    assert all(line.startswith("hint: ") for line in rest)
    assert len(first) < 250


def test_no_option_takes_an_empty_value_or_bytes_that_are_not_text(run_cli: Run) -> None:
    for command, name, _ in OPTIONS:
        assert_refused(run_cli, command, name, "")
        code, out, err = run_cli(*command.split(), name, "caf\udce9")
        assert (code, out) == (2, "")
        assert err.startswith("error: an argument is not UTF-8")


def test_no_number_is_taken_out_of_its_range(run_cli: Run) -> None:
    """Three of nine values for each option, in turns."""
    assert len(NUMBERS) > 60
    for i, (command, name) in enumerate(NUMBERS):
        for value in OUT_OF_ANY_RANGE[i % 3 :: 3]:
            assert_refused(run_cli, command, name, value)


def test_the_fuzzer_knows_every_option() -> None:
    """An option without a good value is given hostile ones alone."""
    known = commands()
    assert {recipe.command for recipe in RECIPES} == known.keys()
    named = {(r.command, word.partition("=")[0]) for r in RECIPES for word in f"{r.base} {r.good}".split()}
    assert {(command, name) for command, name in named if name not in known[command]} == set()
    switches = {(command, name) for command, names in known.items() for name, is_switch in names.items() if is_switch}
    everything = {(command, name) for command, names in known.items() for name in names}
    uploads = {("train", "--upload-repo"), ("convert", "--upload-repo")}  # there is no hub here
    assert everything - switches - named == {("train", "--report-to")} | uploads  # the trackers are not installed


def test_train_has_a_flag_for_every_setting() -> None:
    assert {f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig)} <= commands()["train"].keys()


@dataclass(frozen=True)
class Tea:
    """A group of flags."""

    leaves: int = setting(2, "Spoons.", Whole(1, 9))
    minutes: float | None = setting(None, "Time.", Real(0.5, 10), default_text="by colour")
    kinds: tuple[str, ...] = setting(("green",), "Kinds.", Items(TEXT))
    tin: Path | None = setting(None, "Where.")


@dataclass(frozen=True)
class Strong(Tea):
    """The same with other words."""

    leaves: int = redeclared(Tea, "leaves", help="Many spoons.")


@pytest.fixture
def brew(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command with a group, or with the flags that were given; returns what it was called with."""
    kitchen, called = typer.Typer(rich_markup_mode=None), []

    @grouped
    def tea(cup: Annotated[str, flag("Cup.")], tea: Tea = Tea(leaves=5)) -> None:
        called.append((cup, tea))

    @grouped
    def given(flags: Annotated[dict[str, Any], Tea], milk: Annotated[bool, flag("Milk.")] = False) -> None:
        called.append((flags, milk))

    kitchen.command("tea")(tea)
    kitchen.command("given")(given)
    monkeypatch.setattr("parm_mlx.cli.app.app", kitchen)

    def run(*arguments: str) -> Any:
        called.clear()
        code, out, err = run_cli(*arguments)
        return called[0] if called else (code, out + err)

    return run


def test_a_group_is_built_from_its_flags(brew: Callable[..., Any]) -> None:
    assert brew("tea", "--cup", "c") == ("c", Tea(leaves=5))
    arguments = ("--leaves", "1e0", "--minutes", "3", "--kinds", "black, white", "--tin", "~/tin")
    assert brew("tea", "--cup", "c", *arguments) == ("c", Tea(1, 3.0, ("black", "white"), Path.home() / "tin"))
    assert brew("tea")[0] == 2
    code, text = brew("tea", "--cup", "c", "--leaves", "10")
    assert code == 2
    assert "'--leaves': must be a whole number from 1 to 9, got '10'" in text


def test_only_flags_that_were_given_are_passed_on(brew: Callable[..., Any]) -> None:
    assert brew("given") == ({}, False)
    assert brew("given", "--leaves", "2", "--milk") == ({"leaves": 2}, True)


def test_the_help_of_a_group(brew: Callable[..., Any]) -> None:
    _, text = brew("tea", "--help")
    for part in ("Spoons. [default: 5; 1<=x<=9]", "Time. [default: (by colour);", "Kinds. [default: green]"):
        assert part in " ".join(text.split())
    assert fields(Strong)[0].metadata == {**fields(Tea)[0].metadata, "help": "Many spoons."}
    assert Strong() == Strong(leaves=2)
