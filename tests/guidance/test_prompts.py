import json
import re
import shutil
import typing
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance import prompts
from parm_mlx.guidance.encoding import encode, split_response
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import Prompter, render_prompt
from parm_mlx.guidance.templates import CHAT_TEMPLATES, render
from parm_mlx.mlxlm import load_tokenizer_alone

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Why?"},
]


class Letters:
    """One token per letter, but " y", "yes" and " yes" are one token each, as in a byte-pair tokenizer."""

    has_chat_template = has_thinking = False
    bos_token_id, eos_token_id = 1, 2
    eos_token = "$"
    chat_template = None
    added_tokens_decoder: typing.ClassVar[dict[int, Any]] = {}
    joined = ("·yes", "yes", "·y")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids, text = [self.bos_token_id] if add_special_tokens else [], text.replace(" ", "·")
        while text:
            piece = next((p for p in self.joined if text.startswith(p)), text[0])
            ids.append(1000 + self.joined.index(piece) if piece in self.joined else ord(piece))
            text = text[len(piece) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Spaced(Letters):
    """A chat template of its own that ends in a space."""

    has_chat_template = True

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"{message['role'][0]}: {message['content']}\n" for message in messages) + "a: "


class Bare(Letters):
    """It names a BOS and does not put it before a text; it has one more token than letters, which is not common."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return super().encode(text, False)


class Ended(Letters):
    """It puts BOS before a text and EOS after it."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = super().encode(text, add_special_tokens)
        return [*ids, self.eos_token_id] if add_special_tokens else ids


def split(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], list[int]]:
    ids, start = split_response(tokenizer, prompt, response)
    return ids[:start], ids[start:]


def test_a_boundary_that_is_also_one_of_tokens() -> None:
    assert split(Letters(), "Q:", "no") == ([1, ord("Q"), ord(":")], [ord("n"), ord("o")])


@pytest.mark.parametrize(("response", "first"), [("yes", 1000), ("y", 1002)])
def test_a_template_that_ends_in_a_space_gives_it_to_the_response(response: str, first: int) -> None:
    """Alone, the prompt ends in the token of the space; with the response, space and response are one token."""
    prompt = render_prompt(Spaced(), "Q")  # type: ignore[arg-type]
    assert prompt == "u: Q\na: "
    before, after = split(Spaced(), prompt, response)
    assert before == [1, *map(ord, "u:·Q\na:")]
    assert after == [first]


def test_a_space_that_stays_by_itself_is_the_prompts() -> None:
    assert split(Spaced(), "a: ", "no") == ([1, *map(ord, "a:·")], [*map(ord, "no")])


def test_an_empty_response_has_no_tokens() -> None:
    assert split(Spaced(), "a: ", "") == ([1, *map(ord, "a:·")], [])


def test_an_earlier_merge_moves_the_boundary_further_back() -> None:
    """ "ye" are two tokens of the prompt; with an "s" they are one with it."""
    assert split(Letters(), "a:ye", "s!") == ([1, ord("a"), ord(":")], [1001, ord("!")])


def test_a_conversation_in_a_built_in_template() -> None:
    prompt = render_prompt(Letters(), TALK, "beaver")  # type: ignore[arg-type]
    assert prompt == "BEGINNING OF CONVERSATION: USER: Hi ASSISTANT:Yes$USER: Why? ASSISTANT:"
    before, after = split(Letters(), prompt, "yes")
    assert len(before) == 1 + len(prompt)
    assert after == [1001]


@pytest.fixture(scope="module")
def official_tokenizer(official: Path) -> Any:
    return load_base(official / "arm_base")[1]


def test_beaver_is_the_template_of_the_official_model(official_tokenizer: Any) -> None:
    for prompt in ("Hi", TALK):
        assert render_prompt(official_tokenizer, prompt, "beaver") == render_prompt(official_tokenizer, prompt)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("response", ["", " ", "Yes.", " Yes.", "\n\nYes", ") then"])
def test_the_boundary_loses_and_adds_nothing(official_tokenizer: Any, name: str, response: str) -> None:
    for prompt in ("Hi", TALK):
        text = render_prompt(official_tokenizer, prompt, name)
        ids, start = split_response(official_tokenizer, text, response)
        assert ids == encode(official_tokenizer, text + response)
        assert ids[:start] == encode(official_tokenizer, text)[:start]
        assert 0 < start <= len(ids)
        assert bool(response) == (start < len(ids))


def test_base_and_guide_read_their_own_templates() -> None:
    base, guide = Spaced(), Letters()
    tokens = Prompter(base, guide, guide_template="hh")("Q")  # type: ignore[arg-type]
    assert tokens.base == encode(base, "u: Q\na: ")  # type: ignore[arg-type]
    assert tokens.guide == encode(guide, render("hh", "Q"))  # type: ignore[arg-type]


def test_a_base_without_a_template_reads_the_guides() -> None:
    bare = Letters()
    tokens = Prompter(bare, bare, guide_template="beaver")(TALK)  # type: ignore[arg-type]
    assert tokens.base == tokens.guide
    named = Prompter(bare, bare, base_template="alpaca", guide_template="beaver")("Q")  # type: ignore[arg-type]
    assert named.base == encode(bare, render("alpaca", "Q"))  # type: ignore[arg-type]


def test_plain_text_passes_every_template_by() -> None:
    tokens = Prompter(Spaced(), Letters(), template=False, guide_template="hh")("Q")  # type: ignore[arg-type]
    assert tokens.base == tokens.guide == [1, ord("Q")]


def test_a_prompt_fills_less_than_the_limit() -> None:
    """Four letters and BOS are five tokens; one more must be left for the answer."""
    assert len(Prompter(Letters(), Letters(), limit=6)("Long").base) == 5  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the prompt has 5 tokens, and the model reads 5"):
        Prompter(Letters(), Letters(), limit=5)("Long")  # type: ignore[arg-type]


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(ModelError, match="unknown chat template 'x'"):
        Prompter(Letters(), Letters(), guide_template="x")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no chat template") as caught:
        Prompter(Letters(), Letters())(TALK)  # type: ignore[arg-type]
    assert caught.value.hint == "name one with --chat-template: beaver, alpaca, hh, plain"
    with pytest.raises(ModelError, match="does not accept this conversation"):
        Prompter(Letters(), Letters(), guide_template="hh")(TALK[1:])  # type: ignore[arg-type]


def test_bos_comes_first_only_where_the_tokenizer_puts_it() -> None:
    assert encode(Letters(), "Hi") == [1, ord("H"), ord("i")]  # type: ignore[arg-type]
    assert encode(Ended(), "Hi") == [1, ord("H"), ord("i")]  # type: ignore[arg-type]
    assert encode(Bare(), "Hi") == [ord("H"), ord("i")]  # type: ignore[arg-type]
    assert encode(Letters(), "\x01Hi") == [1, ord("H"), ord("i")]  # type: ignore[arg-type]
    assert split_response(Bare(), "Q:", "no") == ([*map(ord, "Q:no")], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("add", [True, False])
def test_bos_is_that_of_transformers(official: Path, tmp_path: Path, add: bool) -> None:
    """A post-processor without BOS, as in Phi-3 and Granite, whatever the config names."""
    copy = Path(shutil.copytree(official / "arm_base", tmp_path / "model"))
    if not add:
        content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
        content["post_processor"] = None
        (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer_alone(copy)
    assert tokenizer.bos_token == "<s>"
    for text in ("Hi", "<s>Hi", ""):
        assert encode(tokenizer, text) == tokenizer.encode(text)[text.startswith("<s>") and add :]


def test_a_token_without_a_row_is_named_with_its_place() -> None:
    """The letter "z", number 122, is the last one with a row in the base; the guide has rows up to "u".

    The chat template puts brackets around the prompt: "]" is number 93.
    """
    prompter = Prompter(Letters(), Talking(), rows=(123, 118))  # type: ignore[arg-type]
    assert prompter("Hut").base == [1, *map(ord, "Hut")]
    with pytest.raises(InputError, match=r"the prompt has token '~' \(id 126\); the model has .* below 123 only"):
        prompter("~Hut")
    with pytest.raises(InputError, match=r"the prompt has token 'v' \(id 118\); the guide model has"):
        prompter("very")
    with pytest.raises(InputError, match=r"the chat template has token ']' \(id 93\); the guide model has"):
        Prompter(Letters(), Talking(), rows=(123, 93))("HI")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the prompt has token 'x' \(id 120\); the draft model has"):
        Prompter(Letters(), Letters(), rows=(123, 123), draft_rows=120)("ox")  # type: ignore[arg-type]


class Talking(Letters):
    """A chat template that shows each turn in brackets; EOS ends an answer. ``shown`` is how it shows an answer."""

    has_chat_template = True

    def __init__(self, shown: Callable[[str], str] = str, lead: str = "") -> None:
        self.shown, self.lead = shown, lead

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        text = ""
        for message in messages:
            asks = message["role"] == "user"
            text += f"[{message['content']}]" if asks else self.lead + self.shown(message["content"]) + "\x02"
        return text


ANSWER = [*map(ord, "·no"), 1000]
"""A space, "no" and the token of " yes"."""


def after_answer(tokenizer: Any, text: str = " no yes") -> list[int]:
    messages = [*TALK[:1], {"role": "assistant", "content": text}, TALK[2]]
    prompter = Prompter(tokenizer, tokenizer)
    found = prompter.after_answer(messages, prompter(TALK[:1]), ANSWER)
    assert found.base == found.guide
    return found.base


@pytest.mark.parametrize(
    "tokenizer", [Talking(), Talking(str.strip), Talking(str.rstrip), Talking(lambda text: f" {text.strip()}")]
)
def test_an_answer_stays_as_it_was_generated(tokenizer: Any) -> None:
    """Also where the template strips it, or puts a space before it; the detokenizer may have dropped one too."""
    expected = [1, *map(ord, "[Hi]"), *ANSWER, 2, *map(ord, "[Why?]")]
    assert after_answer(tokenizer) == expected
    assert after_answer(tokenizer, "no yes") == expected


def test_tokens_that_are_not_those_of_the_text_stay_too() -> None:
    """A model may write " yes" as five letters, which its tokenizer would never do."""
    prompter = Prompter(Talking(), Talking())  # type: ignore[arg-type]
    messages = [*TALK[:1], {"role": "assistant", "content": " yes"}, TALK[2]]
    answer = [*map(ord, "·yes")]
    found = prompter.after_answer(messages, prompter(TALK[:1]), answer)
    assert found.base == [1, *map(ord, "[Hi]"), *answer, 2, *map(ord, "[Why?]")]


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(Talking(str.upper), "[Hi] NO YES\x02[Why?]"), (Talking(lead="a: "), "[Hi]a:  no yes\x02[Why?]")],
)
def test_a_template_that_shows_an_answer_in_another_way_is_followed(tokenizer: Any, text: str) -> None:
    assert after_answer(tokenizer) == encode(tokenizer, text)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_built_in_templates_keep_an_answer(official_tokenizer: Any, name: str) -> None:
    """Decoded, the conversation is what the template renders, with the answer's own space."""
    prompter = Prompter(official_tokenizer, official_tokenizer, base_template=name, guide_template=name)
    asked = prompter(TALK[:1])
    answer = official_tokenizer.encode(" The cat.", add_special_tokens=False)
    messages = [*TALK[:1], {"role": "assistant", "content": "The cat."}, TALK[2]]
    found = prompter.after_answer(messages, asked, answer).base
    assert found[: len(asked.base) + len(answer)] == [*asked.base, *answer]
    spoken = [*TALK[:1], {"role": "assistant", "content": " The cat."}, TALK[2]]
    assert official_tokenizer.decode(found) == "<s>" + render(name, spoken, "</s>")


@pytest.fixture
def own(official_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Gives a tokenizer a chat template of its own."""

    def with_template(template: str) -> Any:
        monkeypatch.setattr(official_tokenizer._tokenizer, "chat_template", template)
        return official_tokenizer

    return with_template


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "TypeError: can only concatenate"),
        ("{{ messages[0]['name']['first'] }}", "has no attribute 'name'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_a_template_that_fails_is_one_line(own: Callable[[str], Any], template: str, reason: str) -> None:
    tokenizer = own(template)
    with pytest.raises(ModelError, match=f"does not accept this conversation: .*{reason}") as caught:
        Prompter(tokenizer, tokenizer)("Hi")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_templates_that_read_content_in_parts_keep_its_text(own: Callable[[str], Any]) -> None:
    parts = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    tokenizer = own("{% for m in messages %}" + parts + "|{% endfor %}")
    assert render_prompt(tokenizer, TALK) == "Hi|Yes|Why?|"
    assert render_prompt(own("{{ messages[0]['content'] | upper }}"), "Hi") == "HI"


def test_the_date_of_a_template_is_that_of_the_start(
    own: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_STARTED", datetime(2024, 2, 29))
    assert render_prompt(own("{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"), "Hi") == "29 Feb 2024 Hi"


@pytest.mark.parametrize(
    ("base", "guide", "names", "note"),
    [
        (Spaced(), Spaced(), {}, None),
        (Letters(), Letters(), {}, "of base and guide have no chat template: prompts are read as plain text"),
        (Letters(), Spaced(), {}, "base's tokenizer has no chat template: prompts are read as plain text"),
        (Letters(), Letters(), {"guide_template": "hh"}, "base's tokenizer .* with the template hh"),
        (Spaced(), Letters(), {}, "guide's tokenizer .* as plain text"),
        (Spaced(), Letters(), {"base_template": "beaver"}, "guide's tokenizer .* with the template beaver"),
        (Letters(), Letters(), {"base_template": "hh", "guide_template": "beaver"}, None),
        (Letters(), Letters(), {"template": False}, None),
    ],
)
def test_a_missing_template_is_said(base: Any, guide: Any, names: dict[str, Any], note: str | None) -> None:
    found = Prompter(base, guide, **names).note
    assert (found is None) if note is None else re.search(note, found or "")


def test_a_named_template_reaches_a_guide_without_one() -> None:
    bare: Any = Letters()
    tokens = Prompter(Spaced(), bare, base_template="hh")("Q")  # type: ignore[arg-type]
    assert tokens.guide == tokens.base == encode(bare, render("hh", "Q"))
    both = Prompter(bare, Spaced(), base_template="hh")("Q")  # type: ignore[arg-type]
    assert both.guide == encode(bare, "u: Q\na: ")
