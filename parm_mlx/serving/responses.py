"""OpenAI's responses, without what a server that keeps nothing cannot have."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from parm_mlx.serving.chat import usage
from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.events import Text
from parm_mlx.serving.fields import Count, Fields, Metadata, Parts, Schema, SteeredFields, joined
from parm_mlx.serving.grammar import ANY_OBJECT
from parm_mlx.serving.service import Answers, Collected, Service, Wanted
from parm_mlx.serving.settings import MAX_MESSAGES
from parm_mlx.serving.steering import Steering


class InputMessage(Fields):
    """A message, as it is sent or as a response had it."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class ReasoningItem(Fields):
    """An earlier thought, as a response had it, which templates leave out."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    status: str | None = None
    encrypted_content: str | None = None


class TextFormat(Fields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextFields(Fields):
    """How the answer is written."""

    format: TextFormat | None = None


class ResponseRequest(SteeredFields):
    """A request for ``/v1/responses``."""

    input: str | Annotated[list[InputMessage | ReasoningItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextFields | None = None
    enable_thinking: bool | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    user: str | None = None

    def read(self, steering: Steering) -> Wanted:
        """What the request asks for."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for each in self.input:
                if isinstance(each, ReasoningItem):
                    continue
                role = "system" if each.role == "developer" else each.role
                messages.append({"role": role, "content": joined(each.content)})
        return Wanted(
            messages,
            steering,
            self.sampling(),
            self.max_output_tokens,
            schema=self._schema(),
            enable_thinking=self.enable_thinking,
        )

    def _schema(self) -> Any:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return None
        if (wanted.type == "json_schema") != (wanted.schema_ is not None):
            raise RequestError("schema goes with the type json_schema", param="text")
        return ANY_OBJECT if wanted.schema_ is None else wanted.schema_


class Responses:
    """Writes an answer in the shape of the protocol."""

    LAST: ClassVar[str | None] = None

    def __init__(self, answers: Answers, request: ResponseRequest, service: Service) -> None:
        self._answers, self._request, self._menu = answers, request, service.menu
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._message, self._thought = f"msg_{uuid.uuid4().hex}", f"rs_{uuid.uuid4().hex}"

    async def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""
        (found,) = await self._answers.all()
        return self._response(found)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a response that streams."""
        number, found = 0, Collected()
        item, index = "", -1  # the item that is written, and its place

        def event(kind: str, **fields: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number - 1, **fields}

        yield event("response.created", response=self._response(None))
        yield event("response.in_progress", response=self._response(None))
        async for _, each in self._answers.events():
            found.add(each)
            if not isinstance(each, Text) or each.state == "tool":
                continue
            state = "reasoning" if each.state == "reasoning" else "message"
            if state != item:
                if item:
                    for kind, fields in self._ends(item, index, found):
                        yield event(kind, **fields)
                item, index = state, index + 1
                for kind, fields in self._starts(item, index):
                    yield event(kind, **fields)
            kind = "response.reasoning_text.delta" if item == "reasoning" else "response.output_text.delta"
            place = {"item_id": self._item_id(item), "output_index": index, "content_index": 0}
            yield event(kind, **place, delta=each.text, **({} if item == "reasoning" else {"logprobs": []}))
        if item != "message":
            if item:
                for kind, fields in self._ends(item, index, found):
                    yield event(kind, **fields)
            item, index = "message", index + 1
            for kind, fields in self._starts(item, index):
                yield event(kind, **fields)
        for kind, fields in self._ends(item, index, found):
            yield event(kind, **fields)
        response = self._response(found)
        yield event(f"response.{response['status']}", response=response)

    def _item_id(self, item: str) -> str:
        return self._thought if item == "reasoning" else self._message

    def _starts(self, item: str, index: int) -> list[tuple[str, dict[str, Any]]]:
        added = ("response.output_item.added", {"output_index": index, "item": self._item(item, None, "in_progress")})
        if item == "reasoning":
            return [added]
        place = {"item_id": self._message, "output_index": index, "content_index": 0}
        return [added, ("response.content_part.added", {**place, "part": _part("")})]

    def _ends(self, item: str, index: int, found: Collected) -> list[tuple[str, dict[str, Any]]]:
        place = {"item_id": self._item_id(item), "output_index": index, "content_index": 0}
        status = "incomplete" if item == "message" and found.done and found.done.reason == "length" else "completed"
        done = ("response.output_item.done", {"output_index": index, "item": self._item(item, found, status)})
        if item == "reasoning":
            return [("response.reasoning_text.done", {**place, "text": found.reasoning}), done]
        text = ("response.output_text.done", {**place, "text": found.text, "logprobs": []})
        return [text, ("response.content_part.done", {**place, "part": _part(found.text)}), done]

    def _item(self, item: str, found: Collected | None, status: str) -> dict[str, Any]:
        if item == "reasoning":
            content = [{"type": "reasoning_text", "text": found.reasoning}] if found else []
            return {"id": self._thought, "type": "reasoning", "summary": [], "content": content, "status": status}
        parts = [_part(found.text)] if found else []
        return {"id": self._message, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _response(self, found: Collected | None) -> dict[str, Any]:
        request, done = self._request, found.done if found else None
        output, tokens = list[dict[str, Any]](), None
        if found and done:
            if found.reasoning:
                output.append(self._item("reasoning", found, "completed"))
            output.append(self._item("message", found, "completed" if done.reason == "stop" else "incomplete"))
            counts = usage([done])
            tokens = {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": counts["completion_tokens_details"],
                "total_tokens": counts["total_tokens"],
            }
        cut = done is not None and done.reason == "length"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if done is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": tokens,
            "alpha": self._menu.weights(self._answers.wanted.steering.alpha),
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
