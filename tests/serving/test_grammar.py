"""Answers that follow a JSON schema validate, whatever guides them."""

import json
import random
from typing import Any

import jsonschema
import openai
import pytest

from tests.serving.running import MODEL, QUESTION, Running

ALPHAS: list[Any] = [[1, 0], [0, 1], [0.5, 0.5], "base"]
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900}


def schema(draw: random.Random, depth: int) -> dict[str, Any]:
    """A random schema whose answers are bounded."""
    kinds = ["string", "enum", "boolean", "integer", "null"]
    kind = draw.choice(kinds + ["object", "array"] * 2 if depth else kinds)
    if kind == "string":
        return {"type": "string", "maxLength": draw.randint(1, 12)}
    if kind == "enum":
        return {"enum": draw.sample(["warm", "cold", 'a "quoted" one', 7, None, True, "é"], draw.randint(1, 4))}
    if kind == "integer":
        return {"type": "integer", "minimum": draw.randint(-50, 0), "maximum": draw.randint(1, 500)}
    if kind == "array":
        return {"type": "array", "items": schema(draw, depth - 1), "minItems": draw.randint(0, 1), "maxItems": 3}
    if kind == "object":
        return schema_of_object(draw, depth)
    return {"type": kind}


def schema_of_object(draw: random.Random, depth: int) -> dict[str, Any]:
    properties = {f"field {i}": schema(draw, depth - 1) for i in range(draw.randint(1, 3))}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[: draw.randint(0, len(properties))],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("number", range(10))
def test_answers_follow_their_schemas(server: Running, number: int) -> None:
    """Five schemas each, half of them nested, at a corner, between the corners, or by the base alone."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for turn in range(5):
        draw = random.Random(5 * number + turn)
        wanted = schema_of_object(draw, 1 + 2 * (turn % 2))
        answer = client.chat.completions.create(
            **ASKED,
            temperature=1.0,
            seed=turn,
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}},
            extra_body={"alpha": ALPHAS[(number + turn) % 4]},
        )
        text = answer.choices[0].message.content or ""
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(text), wanted)


def test_any_object(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 60}, response_format={"type": "json_object"})
    assert (answer.choices[0].message.content or "").startswith("{")
    wanted = {"type": "object", "properties": {"a": {"const": "yes"}}, "required": ["a"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "answer", "schema": wanted}}
    response = client.responses.create(model=MODEL, input=QUESTION, text=text)  # type: ignore[call-overload]
    assert json.loads(response.output_text) == {"a": "yes"}
