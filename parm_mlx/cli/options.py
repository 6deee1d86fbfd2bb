"""Flags made of declared settings, and the groups of flags that several commands share, with mlx-lm's names.

A command takes a group as one parameter, annotated with the group's dataclass; :func:`grouped` makes a flag of each of
its fields. Values are read by their limits while the command line is parsed, so that a wrong one is one line before
anything is loaded: a number out of its range, empty text, text that is not UTF-8. ``~`` in paths is expanded here.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from parm_mlx.cli.defaults import variable
from parm_mlx.ranges import CANDIDATES, DRAFT_TOKENS, KV_BITS, KV_SIZE, MAX_TOKENS, SHARE, Real, Whole
from parm_mlx.settings import PATH, DraftedBy, Limits, TemplateName, limits_of, plain_type, setting

Command = TypeVar("Command", bound=Callable[..., Any])


def flag(
    help: str,
    limits: Limits | None = None,
    *,
    name: str | None = None,
    short: str | None = None,
    default_text: str | None = None,
    metavar: str | None = None,
    env: str | bool = False,
) -> Any:
    """Declares a parameter's flag, for ``Annotated[…]``; arguments as for :func:`parm_mlx.settings.setting`."""
    low, high = None, None
    if isinstance(limits, (Whole, Real)):
        low, high = (0 if isinstance(limits, Real) and limits.or_zero else limits.low), limits.high
    return typer.Option(
        *filter(None, (short, name)),
        help=help,
        parser=_parser(limits) if limits else None,
        min=low,
        max=high,
        show_default=default_text or True,
        metavar=metavar,
        envvar=variable(env) if isinstance(env, str) else None,
    )


def declared(settings: type, name: str) -> Any:
    """Returns the flag of one field of a dataclass of settings; no environment variable gives its value."""
    found = _field(settings, name)
    return flag(name=_flag_name(name), **{**found.metadata, "env": False})


def redeclared(settings: type, name: str, **changes: Any) -> Any:
    """Declares the setting of another group again, with other words in its help."""
    found = _field(settings, name)
    return field(default=found.default, metadata={**found.metadata, **changes})


def _field(settings: type, name: str) -> "Field[Any]":
    return next(found for found in fields(settings) if found.name == name)


class InterruptError(Exception):
    """Ctrl-C has ended a command."""


def grouped(command: Command) -> Command:
    """Makes a command take each of its groups of settings as flags; also gives every other flag its limits.

    A parameter's default, an object of the group's class, holds the defaults of its flags. A parameter with the
    annotation ``Annotated[dict[str, Any], Settings]`` takes those settings that were given as flags, by name.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {}
    given: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        notes = get_args(parameter.annotation)
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += _parameters(groups[name], parameter.default)
        elif notes and is_dataclass(notes[-1]):
            given[name] = notes[-1]
            parameters += _parameters(given[name])
        else:
            parameters.append(parameter)
    if given and "context" not in signature.parameters:
        parameters.insert(0, inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    variables = {parameter.name: found for parameter in parameters if (found := _variable_of_list(parameter))}
    parameters = [_completed(parameter) for parameter in parameters]

    @wraps(command)
    def run(**values: Any) -> Any:
        for name, where in variables.items():
            if not values[name] and os.environ.get(where):
                values[name] = os.environ[where].splitlines()
        context = values["context"] if "context" in signature.parameters else values.pop("context", None)
        for name, settings in groups.items():
            values[name] = settings(**{option.name: values.pop(option.name) for option in fields(settings)})
        for name, settings in given.items():
            flags = {option.name: values.pop(option.name) for option in fields(settings)}
            values[name] = {flag: value for flag, value in flags.items() if is_given(context, flag)}
        try:
            return command(**values)
        except KeyboardInterrupt as interrupt:  # of which typer would make an exit code without a word
            raise InterruptError from interrupt

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]


def is_given(context: typer.Context, name: str) -> bool:
    """Returns True if a flag was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameters(settings: type, defaults: Any = None) -> Iterator[inspect.Parameter]:
    """Yields the flags of a group; ``defaults`` is an object of it, or None."""
    for option in fields(settings):
        default = getattr(defaults, option.name, option.default)
        yield inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if default == "" else default,
            annotation=Annotated[option.type, _flag_of(option)],
        )


def _flag_of(option: "Field[Any]") -> Any:
    environment = option.name if option.metadata.get("env") else False
    return flag(name=_flag_name(option.name), **{**option.metadata, "env": environment})


def _flag_name(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _completed(parameter: inspect.Parameter) -> inspect.Parameter:
    """Returns a parameter as typer takes it: with the limits of its type, and switches without a ``--no-…``."""
    parameter = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, info = get_args(parameter.annotation)
    info, value = copy(info), plain_type(kind)
    if get_origin(value) is tuple:  # typer reads one text, the parser makes a tuple of it
        kind = str | None
        if isinstance(parameter.default, tuple):
            parameter = parameter.replace(default=",".join(map(str, parameter.default)))
    several = get_origin(value) is list
    value = get_args(value)[0] if several else value
    if value in (str, Path) and not info.parser:
        info.parser = _parser(limits_of(value), value)
    if several and info.envvar:  # of which typer would make a value of every word
        info.help, info.envvar = f"{info.help} [env var: {info.envvar}]", None
    if value is bool and info.default is ...:
        info.default = _flag_name(parameter.name)
    return parameter.replace(annotation=Annotated[kind, info])


def _variable_of_list(parameter: inspect.Parameter) -> str | None:
    """Returns the environment variable of a flag that may be given several times; it has a value on each line."""
    kind, *notes = get_args(parameter.annotation) or (None,)
    listed = get_origin(plain_type(kind)) is list
    return next((str(note.envvar) for note in notes if listed and getattr(note, "envvar", None)), None)


def _parser(limits: Limits, kind: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            read = limits.read(value)
        except ValueError as reason:
            raise typer.BadParameter(str(reason)) from None
        return kind(read) if kind else read

    return parse


path_or_id = _parser(PATH)


@dataclass(frozen=True)
class GuideOptions:
    """Options of guidance: models and strength."""

    model: str | None = setting(
        None,
        "Base model: smollm2, bundled, a directory or a hub id.",
        PATH,
        default_text="--guide-model, or the backbone of --parm; without --parm smollm2",
        env=True,
    )
    parm: list[str] | None = setting(
        None,
        "PARM adapter: smollm2, bundled, a directory or a hub id; several with one objective each guide together "
        "(GenARM).",
        PATH,
        default_text="that of --model smollm2 and bundled",
        metavar="<str>",
        env=True,
    )
    guide_model: str | None = setting(
        None, "Backbone of the PARM: directory or hub id.", PATH, default_text="what the adapter records", env=True
    )
    beta: str | None = setting(
        None,
        "β of guided decoding; smaller means a stronger guide. Several adapters may have one each: 0.5,1.",
        metavar="NUMBER",
        default_text="what the adapter proposes, else 1",
        env=True,
    )
    dequantize: Literal["auto", "off"] = setting(
        "auto",
        "Where MLX computes on a CPU, make quantised models float32, which is faster: auto does so if memory allows.",
    )


@dataclass(frozen=True)
class ServedModelOptions(GuideOptions):
    """The models that answer, and how they read a prompt."""

    guidance: Literal["exact", "one-pass"] = setting(
        "exact",
        "exact computes base and guide; one-pass one network that stands for both, where they share weights: as fast "
        "as the base alone, and an approximation.",
    )
    share: Literal["auto", "on", "off"] = setting(
        "auto", "Compute base and guide in one forward pass: auto where they share weights, on insists."
    )
    across: Literal["auto", "off"] = setting(
        "auto", "Let a PARM of another vocabulary guide: auto where the vocabularies differ, off refuses it."
    )
    across_candidates: int = setting(
        50,
        "Most tokens of the base about which a guide of another vocabulary is asked further, if they take several of "
        "its own.",
        CANDIDATES,
    )
    across_tolerance: float = setting(
        0.01, "Share of the guided distribution that a guide of another vocabulary may leave open.", SHARE
    )
    chat_template: TemplateName | None = setting(
        None,
        "Built-in chat template of the base.",
        default_text="the tokenizer's own, or what the adapter records",
    )
    allow_special: bool = setting(False, "Read control tokens that are written out in prompts as tokens, not as text.")
    system_prompt: str | None = setting(None, "System message put before the prompt.")
    enable_thinking: Literal["on", "off"] | None = setting(
        None, "Whether a model that thinks before it answers does so.", default_text="as its chat template has it"
    )
    steer_thinking: bool = setting(False, "The guide steers thoughts too, and not the answer alone.")
    shard: Literal["tensor", "pipeline", "apart"] | None = setting(
        None,
        "Divide the models between the processes that mlx.launch starts: tensor cuts the base's layers, pipeline gives "
        "each process some of them, apart puts the base in one and the guide in the other.",
        default_text="not divided",
    )


@dataclass(frozen=True)
class ModelOptions(ServedModelOptions):
    """The models that answer, and the size of their prompt caches."""

    kv_bits: int | None = setting(
        None, "Quantise the prompt caches to so many bits: 2, 3, 4, 5, 6 or 8.", KV_BITS, default_text="not quantised"
    )
    max_kv_size: int | None = setting(
        None,
        "Most tokens that the prompt caches hold; what is older is forgotten, but for the first few.",
        KV_SIZE,
        default_text="all",
    )


@dataclass(frozen=True)
class DraftOptions:
    """Speculative decoding."""

    draft_model: str | None = setting(
        None, "Smaller model of the base's vocabulary that drafts tokens to be checked.", PATH
    )
    speculation: DraftedBy = setting(
        "auto",
        "Guide or base drafts tokens, and the other one checks several at once. auto measures, and lets whichever is "
        "faster on this machine draft, or neither; it is for one answer at a time.",
    )
    num_draft_tokens: int | None = setting(None, "Most tokens drafted at a time.", DRAFT_TOKENS, default_text="12")


BASE_ALONE = "base"  # in place of a preference
_ALPHA = 'Preference: "0.7,0.3", by name "cheer=0.7,formality=0.3", or "base" for the base alone'
Alpha = Annotated[str | None, flag(f"{_ALPHA}.", default_text="all equal", env="alpha")]
ALPHAS = f"{_ALPHA}; may be given several times."
Alphas = Annotated[list[str] | None, flag(ALPHAS, default_text="all equal", metavar="<str>", env="alpha")]
MaxTokens = Annotated[int, flag("Longest answer, in tokens.", MAX_TOKENS)]
Json = Annotated[bool, flag("Print one JSON object.", name="--json")]
UploadRepo = Annotated[
    str | None, flag("Upload the result to this repository of the hub, owner/name.", default_text="not uploaded")
]
