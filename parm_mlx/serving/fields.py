"""The fields that requests of several protocols have, checked; others are refused by name."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.events import AnswerOptions
from parm_mlx.serving.service import Wanted
from parm_mlx.serving.settings import MAX_ANSWERS, MAX_BIASES, MAX_DEPTH, MAX_FIELDS, MAX_MESSAGES, MAX_STOP, MAX_STOPS
from parm_mlx.serving.steering import Steering

NUCLEUS = 1e-6  # a top_p that leaves the likeliest token alone: 0 in these protocols, and off in mlx-lm
_SURROGATE = re.compile("[\ud800-\udfff]")


class Fields(BaseModel):
    """A JSON object with these fields and no others; one that is null is as if it were not there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
Temperature = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Schema = dict[str, Any]
Metadata = Annotated[dict[str, Any], Field(max_length=16)]

AlphaField = Annotated[
    Annotated[list[float], Field(max_length=100)] | Annotated[dict[str, float], Field(max_length=100)] | str | None,
    Field(description='Preference: a weight for each objective, weights by name, or "base" for the base alone.'),
]


class SteeredFields(Fields):
    """What every request may say of model, preference and sampling."""

    model: Annotated[str, Field(max_length=1000)]
    alpha: AlphaField = None
    beta: Annotated[float | None, Field(description="β of Eq. 13: smaller, stronger guide.")] = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    stream: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """The settings of sampling that are given."""
        top_p = None if self.top_p is None else max(self.top_p, NUCLEUS)
        given = {"temp": self.temperature, "top_p": top_p, "top_k": self.top_k, "min_p": self.min_p}
        found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.seed is not None:
            found["seed"] = self.seed % 2**64
        return found


class StreamOptions(Fields):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class OpenAIFields(SteeredFields):
    """What OpenAI's older two protocols share, and our own additions to them."""

    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    stop: Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = (
        None
    )
    explain: Annotated[
        bool | Literal["parts"],
        Field(description="Tell what base and guide gave each token; parts: also where one pass stands for both."),
    ] = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    def wanted(
        self,
        content: Sequence[dict[str, Any]] | str,
        steering: Steering,
        max_tokens: int | None,
        vocabulary: int,
        top_logprobs: int | None,
        tools: Sequence[dict[str, Any]] = (),
        **more: Any,
    ) -> Wanted:
        """What a request asks for; ``vocabulary`` bounds the tokens that have a bias.

        Raises:
            RequestError: Fields contradict each other, or a token of ``logit_bias`` is none.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream", param="stream_options")
        if self.explain and steering.alpha is None:
            raise RequestError("explain needs a guided answer: the base answers alone", param="explain")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        options = AnswerOptions(
            stops,
            top_logprobs,
            self.explain,
            self._biases(vocabulary),
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
            tools,
        )
        return Wanted(content, steering, self.sampling(), max_tokens, self.n or 1, options, **more)

    def _biases(self, vocabulary: int) -> dict[int, float]:
        found = {}
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary):
                raise RequestError(f"logit_bias has {token[:40]!r}, which is no token", param="logit_bias")
            found[int(token)] = bias
        return found


class TextPart(Fields):
    """A piece of a message's content."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    cache_control: dict[str, Any] | None = None


Parts = Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)]


def joined(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message."""
    return content or "" if isinstance(content, str | None) else "".join(part.text for part in content)


class FunctionFields(Fields):
    """A tool that the model may call."""

    name: Annotated[str, Field(max_length=200)]
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ToolFields(Fields):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionFields


class SchemaFields(Fields):
    """A JSON schema that an answer follows."""

    name: str
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class FormatFields(Fields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFields | None = None

    def schema_of_answer(self) -> Mapping[str, Any] | None:
        """The schema that the answer follows; None is any text."""
        from parm_mlx.serving.grammar import ANY_OBJECT

        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError("json_schema goes with the type json_schema", param="response_format")
        if self.type == "text":
            return None
        return ANY_OBJECT if self.json_schema is None else self.json_schema.schema_


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:40]} is too large")
    return value


def check_json(body: bytes) -> None:
    """Raises :class:`RequestError` for a body that is not JSON: NaN, halves of characters and depth included."""

    def refused(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(body, parse_constant=refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise RequestError(f"the body is not JSON: {reason}", code="invalid_json") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RequestError(f"the body is nested deeper than {MAX_DEPTH}", code="invalid_json")
        if any(isinstance(each, dict) and len(each) > MAX_FIELDS for each in level):
            raise RequestError(f"an object has more than {MAX_FIELDS} fields", code="invalid_json")
        if any(isinstance(each, str) and _SURROGATE.search(each) for each in level):
            raise RequestError("a text has half of a surrogate pair, which is no character", code="invalid_json")
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in ([*each, *each.values()] if isinstance(each, dict) else each)
        ]
