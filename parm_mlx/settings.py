"""Settings that are declared once, as fields of a dataclass with their help, default and limits.

A declaration makes the check of the value (:func:`check`), the key of a YAML file (:func:`read_settings`), the flag of
the command line and its line in ``--help`` and docs/cli.md (:mod:`parm_mlx.cli.options`). Nothing here imports MLX.
"""

import os
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Protocol, get_args, get_origin

from parm_mlx.errors import ConfigError, InputError
from parm_mlx.files import NAMED, expanded, read_yaml, resolve
from parm_mlx.ranges import SEED, SHARE, TEMP, TOP_K, shown

TemplateName = Literal["beaver", "alpaca", "hh", "plain"]
DraftedBy = Literal["auto", "guide", "base", "off"]


class Limits(Protocol):
    """The values that a setting may have."""

    def read(self, value: Any) -> Any:
        """Returns what a value means; text counts as what it spells. ValueError ("must be …") where it may not be."""


@dataclass(frozen=True)
class Text:
    """Text that is not empty."""

    is_path: bool = False  # a path or a hub id, in which ``~`` stands for the home folder

    def read(self, value: Any) -> str:
        """Returns the text; numbers and path objects count as what they spell."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike)):
            raise ValueError(f"must be text, got {shown(value)}")
        text = str(value)
        if not text or "\0" in text:
            raise ValueError("must not hold a NUL character" if text else "must not be empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"must be UTF-8 text, got {shown(text)}") from None
        if not self.is_path or not str(Path(text)).startswith("~"):
            return text
        try:
            return str(expanded(text))
        except InputError:
            user = shown(text.partition("/")[0])
            raise ValueError(f"begins with an unknown home folder, {user}; a name needs ./ before it") from None


class Switch:
    """True or false."""

    def read(self, value: Any) -> bool:
        """Returns the value."""
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, got {shown(value)}")
        return value


class Choice:
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def read(self, value: Any) -> str:
        """Returns the word."""
        if value not in self.words:
            raise ValueError(f"must be {' or '.join(map(repr, self.words))}, got {shown(value)}")
        return str(value)


@dataclass(frozen=True)
class OrAuto:
    """What ``each`` allows, or ``auto``, which is None."""

    each: Limits

    def read(self, value: Any) -> Any:
        """Returns the value."""
        return None if value == "auto" else self.each.read(value)


@dataclass(frozen=True)
class OrWord:
    """What ``each`` allows, or a word, which stays as it is."""

    each: Limits
    word: str

    def read(self, value: Any) -> Any:
        """Returns the value."""
        try:
            return value if value == self.word else self.each.read(value)
        except ValueError as reason:
            raise ValueError(str(reason).replace("must be ", f"must be {self.word!r} or ", 1)) from None


@dataclass(frozen=True)
class Items:
    """One or more values, as a list or with commas between."""

    each: Limits

    def read(self, value: Any) -> tuple[Any, ...]:
        """Returns the values."""
        items = value.split(",") if isinstance(value, str) else value
        items = items if isinstance(items, (list, tuple)) else [items]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        if not items or "" in items:
            raise ValueError(f"must hold one value or more, none of them empty, got {shown(value)}")
        return tuple(self.each.read(item) for item in items)


TEXT = Text()
PATH = Text(is_path=True)


def setting(
    default: Any,
    help: str,
    limits: Limits | None = None,
    *,
    default_text: str | None = None,
    metavar: str | None = None,
    env: bool = False,
) -> Any:
    """Declares a setting, as the default of a dataclass field.

    Args:
        default: Its value where it is not given; "" where it must be given, None where it is optional.
        help: What it is, in a sentence or two.
        limits: The values it may have; by default those that its type says.
        default_text: What the help shows as the default.
        metavar: What the help shows as the value.
        env: An environment variable, ``PARM_MLX_`` and the name, gives the value where no flag does.
    """
    extra = {"help": help, "limits": limits, "default_text": default_text, "metavar": metavar, "env": env}
    return field(default=default, metadata=extra)


def plain_type(kind: Any) -> Any:
    """Returns a type without ``| None``."""
    members = [member for member in get_args(kind) if member is not NoneType]
    return members[0] if NoneType in get_args(kind) else kind


def limits_of(kind: Any) -> Limits:
    """Returns the limits of a setting that has only a type."""
    kind = plain_type(kind)
    if get_origin(kind) is Literal:
        return Choice(*get_args(kind))
    if kind is bool:
        return Switch()
    return PATH if kind is Path else TEXT


def check(settings: Any) -> list[str]:
    """Replaces the values of a frozen dataclass of settings by what they mean, and lists those that are not allowed."""
    problems = []
    for declared in fields(settings):
        value = getattr(settings, declared.name)
        if value in (None, "") and declared.default == "":
            problems.append(f"{declared.name} is missing")
        elif value is not None or declared.default is not None:
            limits = declared.metadata["limits"] or limits_of(declared.type)
            try:
                object.__setattr__(settings, declared.name, limits.read(value))
            except ValueError as reason:
                problems.append(f"{declared.name} {reason}")
    return problems


def read_settings(path: Path, settings: type) -> dict[str, Any]:
    """Reads a YAML file of settings, as a dataclass declares them; ``batch_size`` and ``batch-size`` are the same key.

    Raises:
        ConfigError: It cannot be read, is not a mapping, or has unknown keys.
    """
    content = read_yaml(path, "config", ConfigError)
    if not isinstance(content, dict | None):
        raise ConfigError(f"config {path} must hold 'name: value' lines")
    names = [declared.name for declared in fields(settings)]
    values: dict[str, Any] = {}
    unknown = []
    for key, value in (content or {}).items():
        name = key.replace("-", "_") if isinstance(key, str) else ""
        if name not in names:
            close = get_close_matches(name, names, 1)
            unknown.append(shown(key) + (f" (did you mean {close[0]!r}?)" if close else ""))
        elif value is not None:
            values[name] = value
    if unknown:
        raise ConfigError(f"config {path}: unknown setting(s) {', '.join(unknown)}")
    return values


@dataclass(frozen=True)
class TokenChoice:
    """How tokens are chosen; ConfigError lists all numbers that are out of their ranges."""

    temp: float = setting(0.0, "Sampling temperature; 0 takes the likeliest token.", TEMP)
    keep_sharpness: bool = setting(
        False,
        "Multiply the temperature of guided answers by 1 + 1/β, by which Eq. 13 sharpens where base and guide agree.",
    )
    top_p: float = setting(0.0, "Nucleus sampling; 0 turns it off.", SHARE)
    top_k: int = setting(0, "Sample from the k likeliest tokens; 0 turns it off.", TOP_K)
    min_p: float = setting(0.0, "Drop tokens below this share of the likeliest; 0: off.", SHARE)

    def __post_init__(self) -> None:
        if problems := check(self):
            raise ConfigError(f"sampling: {'; '.join(problems)}")


@dataclass(frozen=True)
class SamplingSettings(TokenChoice):
    """How tokens are chosen, and with which random numbers."""

    seed: int = setting(0, "Seed of the sampling; the same seed, the same answer.", SEED)


def check_models(
    model: Any,
    parm: Any,
    guide_model: Any,
    draft_model: Any = None,
    speculation: DraftedBy = "auto",
    num_draft_tokens: int | None = None,
    alone: bool = False,
) -> None:
    """Checks that models and drafting do not contradict each other; ``alone`` asks for no guide.

    Raises:
        InputError: They do.
    """
    if not parm and (model is not None or guide_model is not None) and str(model) not in NAMED:
        if guide_model is not None:
            raise InputError("--guide-model needs a PARM, the adapter that guides", hint="add --parm")
        if not alone:
            if "/" not in str(model):
                resolve(model)  # a wrong name is told first
            raise InputError(
                f"{model} needs a PARM, the adapter that guides it",
                hint="add --parm, or --alpha base for the answers of the base alone",
            )
    if draft_model is not None and speculation != "auto":
        raise InputError(f"--draft-model and --speculation {speculation} exclude each other")
    if num_draft_tokens is not None and speculation == "off":
        raise InputError("--num-draft-tokens and --speculation off exclude each other")


def check_guidance(guidance: str, share: str = "auto", speculation: str = "auto") -> None:
    """Checks what is asked of one-pass guidance.

    Raises:
        InputError: Another option needs base and guide apart.
    """
    if guidance not in ("exact", "one-pass"):
        raise InputError(f"--guidance must be exact or one-pass, got {shown(guidance)}")
    if guidance == "exact":
        return
    if share == "off":
        raise InputError("--guidance one-pass and --share off exclude each other: one pass is all that is shared")
    if speculation in ("guide", "base"):
        raise InputError(
            f"--guidance one-pass and --speculation {speculation} exclude each other: base and guide are one network",
            hint="a smaller model can draft: --draft-model",
        )


def check_cache_limits(kv_bits: int | None, max_kv_size: int | None, drafting: bool = False) -> None:
    """Checks what is asked of prompt caches.

    Raises:
        InputError: MLX has no such bits, no cache that is quantised and limited in size, or none that drops tokens and
            reads several drafts as it would read one after the other.
    """
    if max_kv_size is not None and drafting:
        raise InputError("--max-kv-size and drafting exclude each other: answers would not be the same")
    if kv_bits is not None and max_kv_size is not None:
        raise InputError("--kv-bits and --max-kv-size exclude each other: MLX has no cache that is both")
    if kv_bits not in (None, 2, 3, 4, 5, 6, 8):
        raise InputError(f"--kv-bits must be 2, 3, 4, 5, 6 or 8, got {kv_bits}")
