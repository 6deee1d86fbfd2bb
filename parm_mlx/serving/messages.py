"""Anthropic's messages."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.events import AnswerOptions, Done
from parm_mlx.serving.fields import Count, Fields, Metadata, Parts, SteeredFields, Stop, TextPart, joined
from parm_mlx.serving.service import Answers, Service, Wanted
from parm_mlx.serving.settings import MAX_MESSAGES, MAX_STOPS
from parm_mlx.serving.steering import Steering


class ThinkingPart(Fields):
    """An earlier thought, which templates leave out."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ConversationMessage(Fields):
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[TextPart | ThinkingPart], Field(max_length=MAX_MESSAGES)]

    def message(self) -> dict[str, Any]:
        """The message as templates read it."""
        content = self.content
        if not isinstance(content, str):
            content = joined([part for part in content if isinstance(part, TextPart)])
        return {"role": self.role, "content": content}


class ThinkingFields(Fields):
    """Whether a model that thinks does so."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class MessagesRequest(SteeredFields):
    """A request for ``/v1/messages``."""

    messages: Annotated[list[ConversationMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count
    system: str | Parts | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    thinking: ThinkingFields | None = None
    metadata: Metadata | None = None

    def read(self, steering: Steering) -> Wanted:
        """What the request asks for."""
        messages = [message.message() for message in self.messages]
        if messages[-1]["role"] == "assistant":
            raise RequestError("the last message must be the user's", param="messages")
        if system := joined(self.system):
            messages.insert(0, {"role": "system", "content": system})
        return Wanted(
            messages,
            steering,
            self.sampling(),
            self.max_tokens,
            options=AnswerOptions(stops=tuple(self.stop_sequences or ())),
            enable_thinking=None if self.thinking is None else self.thinking.type != "disabled",
        )


class Messages:
    """Writes an answer in the shape of the protocol."""

    LAST: ClassVar[str | None] = None

    def __init__(self, answers: Answers, request: MessagesRequest, service: Service) -> None:
        self._answers, self._request, self._menu = answers, request, service.menu
        self._id = f"msg_{uuid.uuid4().hex}"

    async def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""
        (found,) = await self._answers.all()
        assert found.done is not None
        thought = [{"type": "thinking", "thinking": found.reasoning, "signature": ""}] if found.reasoning else []
        return {
            **self._message([*thought, {"type": "text", "text": found.text}]),
            **self._stop(found.done),
            "usage": self._usage(found.done),
        }

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a response that streams."""
        prompt = len(self._answers.prompt.base)
        message = {**self._message([]), "usage": {"input_tokens": prompt, "output_tokens": 0}}
        yield {"type": "message_start", "message": message}
        block, index, done = "", -1, None
        async for _, event in self._answers.events():
            if isinstance(event, Done):
                done = event
            elif event.state != "tool":
                kind = "thinking" if event.state == "reasoning" else "text"
                if kind != block:
                    if block:
                        yield {"type": "content_block_stop", "index": index}
                    block, index = kind, index + 1
                    yield _block(kind, index)
                delta = {"type": f"{kind}_delta", kind: event.text}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        if block != "text":
            if block:
                yield {"type": "content_block_stop", "index": index}
            index += 1
            yield _block("text", index)
        yield {"type": "content_block_stop", "index": index}
        assert done is not None
        yield {"type": "message_delta", "delta": self._stop(done), "usage": self._usage(done)}
        yield {"type": "message_stop"}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "alpha": self._menu.weights(self._answers.wanted.steering.alpha),
        }

    @staticmethod
    def _stop(done: Done) -> dict[str, Any]:
        reason = "max_tokens" if done.reason == "length" else "stop_sequence" if done.stop else "end_turn"
        return {"stop_reason": reason, "stop_sequence": done.stop}

    @staticmethod
    def _usage(done: Done) -> dict[str, Any]:
        fresh = done.prompt_tokens - done.cached
        return {"input_tokens": fresh, "cache_read_input_tokens": done.cached, "output_tokens": done.tokens}


def _block(kind: str, index: int) -> dict[str, Any]:
    empty = {"type": "text", "text": ""} if kind == "text" else {"type": kind, "thinking": "", "signature": ""}
    return {"type": "content_block_start", "index": index, "content_block": empty}
