import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parm_mlx.data.formats import CONVERSATIONS, RowReader, as_row
from parm_mlx.data.pairs import Pair, RowError

SHARED = {"prompt": "Hi", "responses": ["a", "b"], "preferred": {"safe": 0, "help": 1}}
SINGLE = {"prompt": "Hi", "chosen": "a", "rejected": "b", "objective": "help"}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No", "objective": "help"}
SAFE = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


TALK = {"chosen": [user("Hi"), assistant("Yes")], "rejected": [user("Hi"), assistant("No")], "objective": "help"}

BAD = [
    ([1], "a row must be a JSON object, not a list"),
    ("text", "not a text"),
    (None, "not null"),
    (SAFE | {"better_response_id": [[0]]}, "'better_response_id' must be 0 or 1, not a list"),
    (SINGLE | {"chosen": [assistant("a")]}, "'rejected' must be a list of messages, as 'chosen' is, not a text"),
    (TALK | {"chosen": [user("Hi")]}, "'chosen' does not end with a turn of the assistant"),
    (TALK | {"chosen": []}, "'chosen' holds no message"),
    (TALK | {"rejected": [user("Ho"), assistant("No")]}, "differ before the assistant's last turn"),
    (TALK | {"chosen": [assistant("Yes")], "rejected": [assistant("No")]}, "'prompt' is missing"),
    (TALK | {"prompt": "Ho"}, "'chosen' answers something else than 'prompt'"),
    (SINGLE | {"system": 1}, "'system' must be a text, not a number"),
    (SINGLE | {"system": "a", "prompt": [system("b"), user("Hi")]}, "'system' differs from the system message"),
    ({"question": "Hi", "\x1b": 1}, r"the row has 'question', '\x1b'"),
    ({f"column {i}": i for i in range(20)}, "'column 7', 12 more"),
    (SAFE | {"response_1": None}, "'response_1' must be a text, not null"),
    (SAFE | {"better_response_id": -1}, "'better_response_id' must be 0 or 1, not -1"),
    ({k: v for k, v in SAFE.items() if k != "safer_response_id"}, "'safer_response_id' is missing"),
    (SAFE | SINGLE, "a row has the fields of one format, not"),
    (HH | {"chosen": "Hello"}, "'prompt' is missing, and 'chosen' is not a transcript"),
    (HH | {"chosen": "\n\nAssistant: Yes"}, "'chosen' is not a transcript"),
    (HH | {"rejected": "\n\nHuman: Hi"}, "'rejected' does not end with a turn of the assistant"),
    (HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: No"}, "differ before the assistant's last turn"),
    (HH | {"chosen": HH["chosen"] + "\n\nAssistant: More"}, "ends with two turns of the assistant"),
    ({k: v for k, v in SHARED.items() if k != "prompt"}, "'prompt' is missing"),
    (SHARED | {"prompt": " "}, "'prompt' is empty"),
    (SHARED | {"prompt": 3}, "'prompt' must be a text or a list of messages, not a number"),
    (SHARED | {"prompt": []}, "'prompt' holds no message"),
    (SHARED | {"prompt": [{"role": "user"}]}, "message 1 of 'prompt' must have 'role' and 'content'"),
    (
        SHARED | {"prompt": [{"role": "user", "content": None}]},
        "'content' of message 1 of 'prompt' must be a text, not null",
    ),
    (SHARED | {"prompt": [{"role": "assistant", "content": "x"}]}, "must not be the assistant's"),
    (SHARED | {"prompt": "half \ud800"}, "surrogate"),
    ({"prompt": "Hi"}, "needs 'responses' and 'preferred', or 'chosen' and 'rejected'"),
    ({"prompt": "Hi", "responses": ["a", "b"]}, "'preferred' is missing"),
    ({"prompt": "Hi", "preferred": {"safe": 0}}, "'responses' is missing"),
    ({"prompt": "Hi", "chosen": "a"}, "'rejected' is missing"),
    (SHARED | SINGLE, "not 'chosen' and 'preferred' and 'rejected' and 'responses'"),
    (SHARED | {"responses": ["a"]}, "'responses' must be a list of two texts, not a list of 1"),
    (SHARED | {"responses": "ab"}, "'responses' must be a list of two texts, not a text"),
    (SHARED | {"responses": ["a", 2]}, "the second response must be a text, not a number"),
    (SHARED | {"responses": ["a", "b\0"]}, "NUL"),
    (SHARED | {"preferred": {}}, "at least one objective"),
    (SHARED | {"preferred": [0, 1]}, "at least one objective"),
    (SHARED | {"preferred": {"safe": 2}}, "'preferred' of 'safe' must be 0 or 1, not 2"),
    (SHARED | {"preferred": {"safe": True}}, "'preferred' of 'safe' must be 0 or 1, not true"),
    (SHARED | {"preferred": {"safe": "0"}}, "'preferred' of 'safe' must be 0 or 1"),
    (SHARED | {"preferred": {"": 0}}, "objective names must not be empty"),
    (SHARED | {"preferred": {"a=b": 0}}, "must not hold"),
    (SHARED | {"ended": True}, "'ended' must say true or false of both responses, as in [true, false]"),
    (SHARED | {"ended": [True]}, "'ended' must say true or false of both responses"),
    (SHARED | {"ended": [0, 1]}, "'ended' must say true or false of both responses"),
    (SHARED | {"margins": [1]}, "'margins' must be an object with a number for each objective, not a list"),
    (SHARED | {"margins": {"safe": 1, "fun": 1}}, "'margins' has 'fun', which 'preferred' has not"),
    (SHARED | {"margins": {"safe": -0.5}}, "'margins' of 'safe' must be a finite number ≥ 0, not -0.5"),
    (SHARED | {"margins": {"safe": "1"}}, "'margins' of 'safe' must be a finite number ≥ 0, not "),
    (SHARED | {"margins": {"safe": True}}, "must be a finite number ≥ 0, not true"),
    (SHARED | {"margins": {"safe": math.nan}}, "must be a finite number ≥ 0, not NaN"),
    (SHARED | {"margins": {"safe": 10**400}}, "must be a finite number ≥ 0, not 1000"),
    (SINGLE | {"rejected": ["b"]}, "'rejected' must be a text, not a list"),
    (SINGLE | {"objective": 1}, "'objective' must be a text, not a number"),
    ({k: v for k, v in SINGLE.items() if k != "objective"}, "'objective' is missing"),
]


def read(row: Any, objective: str | None = None) -> Pair:
    return RowReader(objective)(row, "f:1")


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_says_what_is_wrong(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert reason in str(caught.value)


def test_pairs_that_every_objective_judged() -> None:
    pair = read(SHARED | {"id": 7})
    assert (pair.prompt, pair.responses, pair.preferred) == ("Hi", ("a", "b"), {"safe": 0, "help": 1})


def test_chosen_and_rejected() -> None:
    pair = read(SINGLE)
    assert (pair.responses, pair.preferred, pair.where) == (("a", "b"), {"help": 0}, "f:1")
    pair = read({"prompt": "Hi", "chosen": "", "rejected": "b"}, "safe")
    assert (pair.responses, pair.preferred) == (("", "b"), {"safe": 0})


def test_a_transcript_is_the_prompt_and_the_last_answer() -> None:
    begin = "\n\nHuman: Hi \n\nAssistant: Hello.\n\nHuman: What is\n\na cat?\n\nAssistant:"
    pair = read({"chosen": begin + " An animal.\n", "rejected": begin}, "helpful")
    assert pair.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is\n\na cat?"},
    ]
    assert (pair.responses, pair.preferred) == (("An animal.", ""), {"helpful": 0})


def test_a_transcript_without_its_empty_lines_at_the_start() -> None:
    pair = read({"chosen": "Human: Hi\n\nAssistant: Yes", "rejected": "\nHuman: Hi\n\nAssistant: No"}, "x")
    assert (pair.prompt, pair.responses) == ([{"role": "user", "content": "Hi"}], ("Yes", "No"))


@pytest.mark.parametrize("given", [{}, {"prompt": "Hi "}, {"prompt": [user("Hi")]}])
def test_whole_conversations_with_or_without_their_prompt(given: dict[str, Any]) -> None:
    pair = read(TALK | given)
    assert (pair.prompt, pair.responses, pair.preferred) == ([user("Hi")], ("Yes", "No"), {"help": 0})


def test_responses_as_messages_after_a_prompt() -> None:
    prompt = [system("S"), user("Hi")]
    pair = read(SINGLE | {"prompt": prompt, "chosen": [assistant("a")], "rejected": [assistant("b")]})
    assert (pair.prompt, pair.responses) == (prompt, ("a", "b"))


def test_a_conversation_may_have_a_system_message_that_its_prompt_has_not() -> None:
    talk = {key: [system("S"), *TALK[key]] for key in ("chosen", "rejected")}  # type: ignore[misc]
    assert read(TALK | talk | {"prompt": "Hi"}).prompt == [system("S"), user("Hi")]


@pytest.mark.parametrize("row", [SHARED, SINGLE, HH, SAFE, TALK])
def test_a_system_column_comes_before_the_prompt_of_any_format(row: dict[str, Any]) -> None:
    assert read(row | {"system": "S"}).prompt == [system("S"), user("Hi")]
    assert read(row | {"system": ""}).prompt == read(row | {"system": None}).prompt == read(row).prompt


def test_a_system_message_that_is_there_already_is_not_repeated() -> None:
    prompt = [system("S"), user("Hi")]
    assert read(SINGLE | {"prompt": prompt, "system": "S"}).prompt == prompt


def test_rows_of_pku_safe_rlhf_judge_twice() -> None:
    pair = read(SAFE | {"is_response_0_safe": True})
    assert (pair.prompt, pair.responses, pair.preferred) == ("Hi", ("a", "b"), {"helpful": 0, "harmless": 1})


def test_a_file_has_one_format() -> None:
    reader = RowReader()
    reader(SHARED, "f.jsonl:1")
    for row, name in ((SINGLE, "chosen and rejected"), (TALK, CONVERSATIONS), (HH, "HH-RLHF"), (SAFE, "PKU-SafeRLHF")):
        with pytest.raises(RowError) as caught:
            reader(row, "f.jsonl:2")
        expected = f"mixed formats: this row is {name}, f.jsonl:1 is responses and preferred; a file has one format"
        assert str(caught.value) == expected
    assert reader(SHARED, "f.jsonl:5").where == "f.jsonl:5"


def test_margins_are_read_and_written_back_as_they_were() -> None:
    margins = {"safe": 0.1 + 0.2, "help": 3}
    pair = RowReader()(SHARED | {"margins": margins}, "f:1")
    assert pair.margins == margins
    assert RowReader()(json.loads(as_row(pair)), "f:1") == pair
    assert json.loads(as_row(RowReader()(SHARED, "f:1"))) == SHARED


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["\ud800", "\0", "\x1b[31m", HH["chosen"], "user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)
columns = st.sampled_from(["prompt", "system", "objective", "margins", *SHARED, *SINGLE, *SAFE])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from([SHARED, SINGLE, HH, SAFE, TALK, {}]), st.dictionaries(columns, values, max_size=3))
def test_no_row_breaks_the_reader(row: dict[str, Any], changed: dict[str, Any]) -> None:
    """A row is a pair that is written and read back as it was, or has a reason."""
    pair = None
    with suppress(RowError):
        pair = read(row | changed, "help")
    assert pair is None or read(json.loads(as_row(pair))) == pair


def test_ends_are_read_and_written_back_as_they_were() -> None:
    pair = RowReader()(SHARED | {"ended": [True, False]}, "f:1")
    assert pair.ended == (True, False)
    assert RowReader()(json.loads(as_row(pair)), "f:1") == pair
    assert RowReader()(SHARED, "f:1").ended == (True, True)
    assert "ended" not in json.loads(as_row(RowReader()(SHARED, "f:1")))
