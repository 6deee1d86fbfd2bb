import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from parm_mlx.data.formats import RowReader
from parm_mlx.data.pairs import Pair
from parm_mlx.data.tokenize import tokenize, tokenize_pair, tokenize_pairs
from parm_mlx.errors import DataError
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.guidance.templates import CHAT_TEMPLATES, render, render_answered


@pytest.fixture(scope="module")
def tokenizer(official: Path) -> Any:
    return load_base(official / "arm_base")[1]


@pytest.fixture(scope="module")
def expected(official: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((official / "expected_tokenize.json").read_text())
    return content


KEPT, TRUNCATED = (0, 4), (1, 2, 3)


@pytest.mark.parametrize("number", KEPT)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_rows_that_fit_are_tokenised_as_by_the_official_code(
    tokenizer: Any, expected: dict[str, Any], number: int, side: str
) -> None:
    """Row 0 has a boundary merge (":" and ")" are one token), row 4 an empty answer and one that brings its own EOS."""
    row, official = expected["rows"][number], expected["tokenized"][number]
    ours = tokenize(tokenizer, row["prompt"], row[side])
    assert ours.ids.tolist() == official[f"{side}_input_ids"]
    assert [-100] * ours.start + ours.ids[ours.start :].tolist() == official[f"{side}_labels"]


def test_the_loss_fixture_is_tokenised_as_by_the_official_code(tokenizer: Any, official: Path) -> None:
    content = json.loads((official / "expected_loss_k2.json").read_text())
    for number, row in enumerate(content["rows"]):
        for side in ("chosen", "rejected"):
            ours = tokenize(tokenizer, row["prompt"], row[side])
            assert ours.ids.tolist() == content[f"{side}_input_ids"][number]
            assert ours.start == content["prompt_lengths"][number]


def test_what_the_official_code_cuts_is_left_out_whole(tokenizer: Any, expected: dict[str, Any]) -> None:
    """Over the limit the official code silently drops BOS, EOS or half a prompt; here the pair goes, and is counted."""
    pairs = [
        Pair(row["prompt"], (row["chosen"], row["rejected"]), row["labels"], f"rows:{i + 1}")
        for i, row in enumerate(expected["rows"])
    ]
    plain = _Plain(tokenizer)
    kept, note = tokenize_pairs(plain, pairs, ("safe", "help"), expected["max_length"])
    assert [pair.where for pair in kept] == ["rows:1", "rows:5"]
    assert note == "3 of 5 pairs are left out: 91 to 197 tokens, and the limit is 64"
    assert [pair.preferred.tolist() for pair in kept] == [[0, 1], [1, 0]]
    for number in TRUNCATED:
        row, cut = expected["rows"][number], expected["tokenized"][number]
        for side in ("chosen", "rejected"):
            ours = tokenize(tokenizer, row["prompt"], row[side])
            assert (ours.ids[0], ours.ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            assert len(ours) > len(cut[f"{side}_input_ids"]) or ours.ids.tolist() == cut[f"{side}_input_ids"]


class _Plain:
    """The same tokenizer without its chat template: prompts are used as they are."""

    has_chat_template = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_the_limit_counts_every_token(tokenizer: Any) -> None:
    pair = Pair("Hi", ("Sure.", "No."), {"safe": 0}, "f:1")
    length = len(tokenize(tokenizer, render_prompt(tokenizer, "Hi"), "Sure."))
    assert tokenize_pairs(tokenizer, [pair], ("safe",), length)[1] is None
    assert tokenize_pairs(tokenizer, [pair], ("safe",), length - 1)[0] == []


def test_an_objective_that_did_not_judge_is_marked(tokenizer: Any) -> None:
    pair = Pair("Hi", ("Sure.", "No."), {"help": 1}, "f:1")
    kept, _ = tokenize_pairs(tokenizer, [pair], ("safe", "help", "fun"), 100)
    assert kept[0].preferred.tolist() == [-1, 1, -1]


def test_text_and_messages_are_rendered_by_the_chat_template(tokenizer: Any) -> None:
    text = "BEGINNING OF CONVERSATION: USER: Hi ASSISTANT:"
    assert render_prompt(tokenizer, "Hi") == text
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Why?"},
    ]
    assert render_prompt(tokenizer, messages) == text + "Yes</s>USER: Why? ASSISTANT:"
    assert render_prompt(_Plain(tokenizer), "Hi") == "Hi"


def test_a_prompt_that_brings_its_own_bos_gets_no_second_one(tokenizer: Any) -> None:
    row = tokenize(tokenizer, "<s>USER: Hi", " there")
    bare = tokenize(tokenizer, "USER: Hi", " there")
    assert row.ids.tolist() == bare.ids.tolist()
    assert row.start == bare.start


class _Letters:
    """One token per letter; "xyz" is one token, so a boundary inside it joins several prompt tokens."""

    has_chat_template = False
    bos_token_id = None
    eos_token, eos_token_id = "\0", 0
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [1 if part == "!" else ord(part) for part in text.replace("xyz", "!")]


def test_the_boundary_moves_back_over_every_prompt_token_that_the_response_changes() -> None:
    row = tokenize(_Letters(), "axy", "zb")  # type: ignore[arg-type]
    assert row.ids.tolist() == [ord("a"), 1, ord("b"), 0]
    assert row.start == 1


def test_a_prompt_that_ends_in_eos_still_gets_one_for_an_empty_response() -> None:
    row = tokenize(_Letters(), "a\0", "")  # type: ignore[arg-type]
    assert row.ids.tolist() == [ord("a"), 0, 0]
    assert row.start == 2


def test_a_response_with_no_token_before_it_is_refused() -> None:
    pair = Pair("xy", ("z", "b"), {"x": 0}, "f:1")
    with pytest.raises(DataError, match="f:1: 'prompt' has no token before the response"):
        tokenize_pairs(_Letters(), [pair], ("x",), 10)  # type: ignore[arg-type]


def test_prompts_that_the_template_refuses_are_reported_together(tokenizer: Any) -> None:
    from jinja2 import TemplateError

    class Strict(_Plain):
        has_chat_template = True

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            if messages[0]["role"] == "system":
                raise TemplateError("no system role")
            return "text"

    pairs = [
        Pair([{"role": role, "content": "x"}], ("a", "b"), {"x": 0}, f"f:{i}")
        for i, role in enumerate(["system", "user", "system"], 1)
    ]
    strict: Any = Strict(tokenizer)
    with pytest.raises(DataError, match=r"(?s)2 rows.*f:1: the chat template.*no system role.*f:3"):
        tokenize_pairs(strict, pairs, ("x",), 100)
    kept, note = tokenize_pairs(strict, pairs, ("x",), 100, skip_bad=True)
    assert [pair.where for pair in kept] == ["f:2"]
    assert note is not None
    assert note.startswith("2 rows are left out")
    with pytest.raises(DataError, match="f:1"):
        tokenize_pairs(strict, pairs[:1], ("x",), 100, skip_bad=True)


TRANSCRIPT = "\n\nHuman: Is it far?\n\nAssistant: Two hours on foot.\n\nHuman: And by bus?\n\nAssistant: Half an hour."


def test_a_transcript_is_trained_on_as_it_is_written(tokenizer: Any) -> None:
    pair = RowReader("x")({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT.replace("Half", "Nearly half")}, "f:1")
    row = tokenize_pair(tokenizer, pair, ("x",), "hh").rows[0]
    assert tokenizer.decode(row.ids.tolist()) == f"<s>{TRANSCRIPT}</s>"
    assert tokenizer.decode(row.ids[row.start :].tolist()) == " Half an hour.</s>"


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("answer", ["Half an hour.", " Half an hour.", "\nHalf an hour."])
def test_the_last_answer_is_rendered_as_earlier_ones_are(tokenizer: Any, name: str, answer: str) -> None:
    """Training, history and what a reward model reads: the same text up to the answer's end, the same first token."""
    asked = [{"role": "user", "content": "By bus?"}]
    row = tokenize_pair(tokenizer, Pair(asked, (answer, "No."), {"x": 0}, "f:1"), ("x",), name).rows[0]
    trained = tokenizer.decode(row.ids[:-1].tolist()).removeprefix("<s>")
    history = render(name, [*asked, {"role": "assistant", "content": answer}, asked[0]])
    assert trained == render_answered(name, asked, answer)
    assert history.startswith(trained)
    ids = tokenizer.encode(history)
    assert ids[: row.start + 1] == row.ids[: row.start + 1].tolist()
    assert history.count(answer) == 1


def test_tokens_without_a_row_are_reported_together(tokenizer: Any) -> None:
    """The model knows the tokens of the first pair and no greater ones."""
    known, *others = (
        Pair("1", ("1", text), {"x": 0}, f"f:{line}") for line, text in enumerate(("1 1", "a quick fox", "lazy"), 1)
    )
    plain = _Plain(tokenizer)
    rows = 1 + max(int(row.ids.max()) for row in tokenize_pair(plain, known, ("x",)).rows)
    assert len(tokenize_pairs(plain, [known], ("x",), 99, rows=rows)[0]) == 1
    reason = rf"token '.+' \(id \d+\); the model has embeddings for ids below {rows} only"
    with pytest.raises(DataError, match=rf"2 rows cannot be used\s+f:2: {reason}\s+f:3: {reason}"):
        tokenize_pairs(plain, [known, *others], ("x",), 99, rows=rows)
    assert len(tokenize_pairs(plain, [known, *others], ("x",), 99, rows=512)[0]) == 3


def test_a_response_that_goes_on_has_no_end(tokenizer: Any) -> None:
    pair = Pair("Why?", ("Because so.", "Because not."), {"safe": 0}, "here", ended=(True, False))
    whole = tokenize_pair(tokenizer, Pair("Why?", pair.responses, {"safe": 0}, "here"), ["safe"], "beaver")
    cut = tokenize_pair(tokenizer, pair, ["safe"], "beaver")
    assert cut.rows[0].ids.tolist() == whole.rows[0].ids.tolist()
    assert cut.rows[1].ids.tolist() == whole.rows[1].ids[:-1].tolist()
    assert whole.rows[1].ids[-1] == tokenizer.eos_token_id
