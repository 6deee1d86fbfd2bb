"""The real clients of OpenAI and Anthropic, and llm, against a running server."""

import os
import subprocess
import sys
from pathlib import Path

import anthropic
import openai
import pytest

from tests.serving.running import MODEL, QUESTION, Running

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def chat(client: openai.OpenAI, **changes: object) -> str:
    return client.chat.completions.create(**{**ASKED, **changes}).choices[0].message.content  # type: ignore[call-overload, no-any-return]


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["bundled", "bundled@base", "bundled@warmth=1", "bundled@focus=1", "bundled@warmth=0.5,focus=0.5"]
    assert client.models.retrieve("bundled@warmth=1").id == "bundled@warmth=1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="owner/other"):
        client.models.retrieve("owner/other")


def test_a_nucleus_of_0_is_the_likeliest_token(client: openai.OpenAI) -> None:
    assert chat(client, temperature=1, top_p=0) == chat(client, temperature=0)


def test_alpha_in_body_header_and_name(client: openai.OpenAI) -> None:
    ways = [
        chat(client, extra_body={"alpha": {"warmth": 1}}),
        chat(client, extra_body={"alpha": [2, 0]}),
        chat(client, extra_body={"alpha": "warmth=1"}),
        chat(client, extra_headers={"X-PARM-Alpha": "warmth=1"}),
        chat(client, model="bundled@warmth=1"),
        chat(client, model="bundled@1,0", extra_body={"alpha": {"warmth": 3}}),
    ]
    assert len(set(ways)) == 1
    base = chat(client, model="bundled@base")
    assert base == chat(client, extra_body={"alpha": "base"})
    assert len({ways[0], base, chat(client, model="bundled@focus=1", max_tokens=60)}) == 3


def test_a_stream_is_the_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, extra_body={"alpha": [0.3, 0.9]})  # type: ignore[call-overload]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            **ASKED, stream=True, stream_options={"include_usage": True}, extra_body={"alpha": [0.3, 0.9]}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].alpha == whole.alpha == pytest.approx({"warmth": 0.25, "focus": 0.75})
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_a_follow_up_reads_its_new_tokens_only(client: openai.OpenAI) -> None:
    messages = [*ASKED["messages"]]  # type: ignore[misc]
    first = client.chat.completions.create(**ASKED, extra_body={"alpha": [0.6, 0.4]})  # type: ignore[call-overload]
    messages += [{"role": "assistant", "content": first.choices[0].message.content}]
    messages += [{"role": "user", "content": "And then?"}]
    again = client.chat.completions.create(  # type: ignore[call-overload]
        **{**ASKED, "messages": messages}, extra_body={"alpha": [0.6, 0.4]}
    )
    details = again.usage.prompt_tokens_details
    read = first.usage.prompt_tokens + first.usage.completion_tokens
    assert details.cached_tokens >= read - 2
    assert details.guide_cached_tokens >= read - 2
    other = client.chat.completions.create(  # type: ignore[call-overload]
        **{**ASKED, "messages": messages}, extra_body={"alpha": [0.4, 0.6]}
    )
    assert other.usage.prompt_tokens_details.cached_tokens >= details.cached_tokens
    assert other.usage.prompt_tokens_details.guide_cached_tokens == 0


def test_settings_of_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        **{**ASKED, "temperature": 1.0}, n=3, seed=5, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    again = client.chat.completions.create(**{**ASKED, "temperature": 1.0}, n=3, seed=5)  # type: ignore[call-overload]
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]
    content = answer.choices[0].logprobs.content
    assert "".join(each.token for each in content) == answer.choices[0].message.content
    assert all(len(each.top_logprobs) == 2 and each.top_logprobs[0].logprob >= each.logprob for each in content)

    whole = chat(client)
    word = whole.split()[3]
    assert chat(client, stop=[word]) == whole[: whole.index(word)]
    token = content[0].token
    banned = {str(i): -100.0 for i in tokens_of(client, token)}
    assert not chat(client, seed=5, logit_bias=banned).startswith(token)
    assert chat(client, frequency_penalty=2.0, presence_penalty=2.0, max_tokens=60) != chat(client, max_tokens=60)


def tokens_of(client: openai.OpenAI, text: str) -> list[int]:
    """The ids that an explained answer gives to a token."""
    answer = client.chat.completions.create(**ASKED, seed=5, extra_body={"explain": True})  # type: ignore[call-overload]
    return [each["id"] for each in answer.choices[0].explain["tokens"] if each["token"] == text]


def test_completions_continue_a_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="I am", max_tokens=8, temperature=0, logprobs=1)
    chunks = client.completions.create(model=MODEL, prompt="I am", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].logprobs is not None
    assert "".join(whole.choices[0].logprobs.tokens or []) == whole.choices[0].text


def test_responses(client: openai.OpenAI) -> None:
    asked = {"model": "bundled@focus=1", "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked)  # type: ignore[call-overload]
    assert whole.output_text == chat(client, model="bundled@focus=1")
    events = list(client.responses.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = client.responses.create(**{**asked, "max_output_tokens": 100})  # type: ignore[call-overload]
    with client.responses.stream(**{**asked, "max_output_tokens": 100}) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_a_response_goes_back_as_it_came(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
    first = client.responses.create(**asked, input=QUESTION)  # type: ignore[call-overload]
    turns = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And then?"}]
    second = client.responses.create(**asked, input=turns)  # type: ignore[call-overload]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    again = client.responses.create(**asked, input=[turns[0], thought, *turns[1:]])  # type: ignore[call-overload]
    assert second.output_text == again.output_text
    answer = client.chat.completions.create(**ASKED).choices[0].message  # type: ignore[call-overload]
    messages = [*ASKED["messages"], answer.model_dump(), {"role": "user", "content": "And then?"}]  # type: ignore[misc]
    assert chat(client, messages=messages) == second.output_text


@pytest.mark.parametrize("prompt", ["I like 🎉", "Un café", "日本"])
def test_a_text_that_ends_in_a_character_of_several_tokens_goes_on(client: openai.OpenAI, prompt: str) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=8, temperature=0, extra_body={"explain": True}
    ).choices[0]
    assert not answer.text.startswith("\ufffd")
    assert "".join(each["token"] for each in answer.explain["tokens"]) == answer.text  # type: ignore[attr-defined]


def test_messages(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    asked = {"model": "bundled@warmth=1", "messages": ASKED["messages"], "max_tokens": 24}
    asked["extra_body"] = {"temperature": 0}
    whole = claude.messages.create(**asked)  # type: ignore[call-overload]
    assert whole.content[0].text == chat(client, model="bundled@warmth=1")
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().stop_reason == whole.stop_reason
    word = whole.content[0].text.split()[2]
    stopped = claude.messages.create(**asked, stop_sequences=[word])  # type: ignore[call-overload]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    with pytest.raises(anthropic.BadRequestError, match="the field tools is not supported"):
        claude.messages.create(**asked, tools=[])  # type: ignore[call-overload]


def test_errors_are_those_that_clients_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model is bundled"):
        chat(client, model="gpt-4")
    with pytest.raises(openai.BadRequestError, match="best_of is not supported") as refused:
        chat(client, extra_body={"best_of": 2})
    assert refused.value.param == "best_of"
    with pytest.raises(openai.BadRequestError, match="the prompt has"):
        chat(client, messages=[{"role": "user", "content": "bread " * 2000}])
    with pytest.raises(openai.BadRequestError, match="give different preferences"):
        chat(client, model="bundled@warmth=1", extra_body={"alpha": "base"})


def test_llm(server: Running, tmp_path: Path) -> None:
    """llm with an entry for an OpenAI-compatible model."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: warm\n  model_name: bundled@warmth=1\n  api_base: {server.url}/v1\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "warm", QUESTION, "-o", "temperature", "0", "-o", "max_tokens", "24"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().startswith("I")
