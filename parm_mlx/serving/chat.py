"""OpenAI's chat completions and completions."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from parm_mlx.guidance.explain import described, finite
from parm_mlx.serving.answering import TAIL
from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.events import Done, Text
from parm_mlx.serving.fields import (
    Count,
    Fields,
    FormatFields,
    Metadata,
    OpenAIFields,
    Parts,
    ToolFields,
    joined,
)
from parm_mlx.serving.service import Answers, Collected, Service, Wanted, add_call
from parm_mlx.serving.settings import MAX_MESSAGES, MAX_TOP_LOGPROBS
from parm_mlx.serving.steering import Steering


class CalledFunction(Fields):
    """A function as a model called it."""

    name: Annotated[str, Field(max_length=200)]
    arguments: str


class ToolCall(Fields):
    """A call of a tool in an earlier message."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Fields):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None

    def message(self) -> dict[str, Any]:
        """The message as templates read it."""
        found: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": joined(self.content),
        }
        if self.tool_calls:
            found["tool_calls"] = [self._call(call) for call in self.tool_calls]
        if self.tool_call_id:
            found["tool_call_id"] = self.tool_call_id
        return found

    def _call(self, call: ToolCall) -> dict[str, Any]:
        try:
            arguments = json.loads(call.function.arguments)
        except (ValueError, RecursionError):
            raise RequestError("the arguments of a tool call are not JSON", param="messages") from None
        return {"type": "function", "id": call.id, "function": {"name": call.function.name, "arguments": arguments}}


class ChatRequest(OpenAIFields):
    """A request for ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: FormatFields | None = None
    tools: Annotated[list[ToolFields], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    enable_thinking: bool | None = None
    metadata: Metadata | None = None
    store: Literal[False] | None = None

    def read(self, steering: Steering, vocabulary: int, has_tools: bool) -> Wanted:
        """What the request asks for."""
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs", param="top_logprobs")
        tools = [] if self.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        if tools and not has_tools:
            raise RequestError("the model's chat template has no tools", param="tools")
        if tools and self.response_format and self.response_format.type != "text":
            raise RequestError("tools and response_format do not go together", param="response_format")
        return self.wanted(
            [message.message() for message in self.messages],
            steering,
            self.max_completion_tokens or self.max_tokens,
            vocabulary,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=self.response_format.schema_of_answer() if self.response_format else None,
            tools=tools,
            enable_thinking=self.enable_thinking,
        )


class CompletionRequest(OpenAIFields):
    """A request for ``/v1/completions``."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Literal[False] | None = None

    def read(self, steering: Steering, vocabulary: int) -> Wanted:
        """What the request asks for; 16 tokens by default, as OpenAI has it."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self.wanted(prompt, steering, self.max_tokens or 16, vocabulary, top_logprobs=self.logprobs)


class Completions:
    """Writes answers in the shape of one of the two protocols."""

    LAST: ClassVar[str | None] = "[DONE]"

    def __init__(self, answers: Answers, request: OpenAIFields, service: Service) -> None:
        self._answers, self._request, self._menu, self._tokenizer = answers, request, service.menu, service.tokenizer
        self._chat = isinstance(request, ChatRequest)
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""
        found = await self._answers.all()
        choices = [self._choice(index, each) for index, each in enumerate(found)]
        object_ = "chat.completion" if self._chat else "text_completion"
        return {**self._head(object_), "choices": choices, **self._foot([each.done for each in found if each.done])}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a response that streams."""
        object_, ends = "chat.completion.chunk" if self._chat else "text_completion", list[Done]()
        if self._chat:
            for index in range(self._answers.wanted.n):
                start = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield {**self._head(object_), "choices": [start]}
        calls: list[list[str]] = [[] for _ in range(self._answers.wanted.n)]
        async for index, event in self._answers.events():
            if isinstance(event, Done):
                ends.append(event)
                made, rest = self._calls(calls[index])
                if rest:
                    yield {**self._head(object_), "choices": [self._piece(index, Text(rest))]}
                delta = {"tool_calls": [{"index": i, **call} for i, call in enumerate(made)]} if made else {}
                yield {**self._head(object_), "choices": [self._end(index, event, delta)]}
            elif event.state == "tool":
                add_call(calls[index], event)
            else:
                yield {**self._head(object_), "choices": [self._piece(index, event)]}
        if (options := self._request.stream_options) is not None and options.include_usage:
            yield {**self._head(object_), "choices": [], **self._foot(ends)}

    def _head(self, object_: str) -> dict[str, Any]:
        return {"id": self._id, "object": object_, "created": self._created, "model": self._request.model}

    def _foot(self, ends: Sequence[Done]) -> dict[str, Any]:
        steering = self._answers.wanted.steering
        return {"usage": usage(ends), "alpha": self._menu.weights(steering.alpha)}

    def _choice(self, index: int, found: Collected) -> dict[str, Any]:
        assert found.done is not None
        if not self._chat:
            return {**self._end(index, found.done), "text": found.text, "logprobs": self._logprobs(found.pieces)}
        calls, rest = self._calls(found.calls)
        message: dict[str, Any] = {"role": "assistant", "content": found.text + rest}
        if found.reasoning:
            message["reasoning_content"] = found.reasoning
        if calls:
            message |= {"tool_calls": calls, "content": message["content"] or None}
        end = self._end(index, found.done, {"tool_calls": calls} if calls else {})
        del end["delta"]
        return {**end, "message": message, "logprobs": self._logprobs(found.pieces)}

    def _end(self, index: int, done: Done, delta: dict[str, Any] | None = None) -> dict[str, Any]:
        end: dict[str, Any] = {"index": index, "finish_reason": "tool_calls" if delta else done.reason}
        if done.reasons is not None:
            end["explain"] = self._explained(done)
        return {**end, "delta": delta or {}} if self._chat else {**end, "text": "", "logprobs": None}

    def _piece(self, index: int, event: Text) -> dict[str, Any]:
        piece: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": self._logprobs([event])}
        if not self._chat:
            return {**piece, "text": event.text}
        return {**piece, "delta": {"reasoning_content" if event.state == "reasoning" else "content": event.text}}

    def _logprobs(self, pieces: Sequence[Text]) -> dict[str, Any] | None:
        if self._answers.wanted.options.top_logprobs is None:
            return None
        found = [each for piece in pieces for each in piece.logprobs if piece.state == "normal"]
        if self._chat:
            return {
                "content": [
                    {
                        **self._token(each.token, each.logprob),
                        "top_logprobs": [self._token(*alternative) for alternative in each.top],
                    }
                    for each in found
                ],
                "refusal": None,
            }
        return {
            "tokens": [self._text(each.token) for each in found],
            "token_logprobs": [finite(each.logprob) for each in found],
            "top_logprobs": [{self._text(token): finite(value) for token, value in each.top} for each in found],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _explained(self, done: Done) -> dict[str, Any]:
        steering = self._answers.wanted.steering
        before = () if self._chat else self._answers.prompt.base[-TAIL:]
        tokens = described(self._tokenizer, done.reasons or (), before)
        beta = steering.beta if steering.beta is not None else self._menu.beta
        return {"alpha": self._menu.weights(steering.alpha), "beta": beta, "tokens": tokens}

    def _calls(self, written: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
        """The calls of tools that a model has written, and what of them is none: that belongs to the text."""
        tools, calls, rest = list(self._answers.wanted.options.tools), list[dict[str, Any]](), ""
        for text in written:
            try:
                parsed = self._tokenizer.tool_parser(text, tools)
                calls += [_call(each) for each in (parsed if isinstance(parsed, list) else [parsed])]
            except Exception:  # what a model writes need not be a call
                rest += f"{self._tokenizer.tool_call_start}{text}{self._tokenizer.tool_call_end or ''}"
        return calls, rest


def _call(parsed: Any) -> dict[str, Any]:
    name = parsed["name"]
    if not isinstance(name, str):
        raise TypeError("the name of a function is text")
    function = {"name": name, "arguments": json.dumps(parsed.get("arguments", {}))}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def usage(ends: Sequence[Done]) -> dict[str, Any]:
    """OpenAI's account of the tokens of a request, whose prompt counts once."""
    prompt, tokens = max((end.prompt_tokens for end in ends), default=0), sum(end.tokens for end in ends)
    cached = {
        "cached_tokens": max((end.cached for end in ends), default=0),
        "guide_cached_tokens": max((end.guide_cached for end in ends), default=0),
    }
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": sum(end.thought_tokens for end in ends)},
    }
