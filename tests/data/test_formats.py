import json
import math
from typing import Any

import pytest

from parm_mlx.data.formats import RowReader, as_row, decode
from parm_mlx.data.pairs import Pair, RowError

SHARED = {"prompt": "Hi", "responses": ["a", "b"], "preferred": {"safe": 0, "help": 1}}
SINGLE = {"prompt": "Hi", "chosen": "a", "rejected": "b", "objective": "help"}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No", "objective": "help"}
SAFE = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}

BAD = [
    ("{", "broken JSON"),
    ('{"prompt": "Hi"\n', "broken JSON: Expecting ',' delimiter at column 16"),
    ('{"prompt": "Hi" "chosen": "a"}', "broken JSON: Expecting ',' delimiter at column 17"),
    ("[" * 100_000, "nesting that is too large"),
    ('{"a": ' + "9" * 5000 + "}", "too large"),
    ("[1]", "a row must be a JSON object, not a list"),
    ('"text"', "not a text"),
    ("null", "not null"),
    ('{"prompt": "a\0b"}', "NUL"),
    (SAFE | {"response_1": None}, "'response_1' must be a text, not null"),
    (SAFE | {"better_response_id": -1}, "'better_response_id' must be 0 or 1, not -1"),
    ({k: v for k, v in SAFE.items() if k != "safer_response_id"}, "'safer_response_id' is missing"),
    (SAFE | SINGLE, "a row has the fields of one format, not"),
    (HH | {"chosen": "Hello"}, "'prompt' is missing, and 'chosen' is no transcript that begins with '\\n\\nHuman:'"),
    (HH | {"chosen": "\n\nAssistant: Yes"}, "'chosen' is no transcript"),
    (HH | {"rejected": "\n\nHuman: Hi"}, "'rejected' does not end with a turn of the assistant"),
    (HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: No"}, "differ before the assistant's last turn"),
    (HH | {"chosen": HH["chosen"] + "\n\nAssistant: More"}, "ends with two turns of the assistant"),
    ({k: v for k, v in SHARED.items() if k != "prompt"}, "'prompt' is missing"),
    (SHARED | {"prompt": " "}, "'prompt' is empty"),
    (SHARED | {"prompt": 3}, "'prompt' must be a text or a list of messages, not a number"),
    (SHARED | {"prompt": []}, "'prompt' holds no message"),
    (SHARED | {"prompt": [{"role": "user"}]}, "message 1 of 'prompt' must have 'role' and 'content'"),
    (SHARED | {"prompt": [{"role": "user", "content": None}]}, "'content' of message 1 must be a text, not null"),
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
    return RowReader(objective)(decode(row if isinstance(row, str) else json.dumps(row)), "f:1")


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


def test_rows_of_pku_safe_rlhf_judge_twice() -> None:
    pair = read(SAFE | {"is_response_0_safe": True})
    assert (pair.prompt, pair.responses, pair.preferred) == ("Hi", ("a", "b"), {"helpful": 0, "harmless": 1})


def test_a_file_has_one_format() -> None:
    reader = RowReader()
    reader(SHARED, "f.jsonl:1")
    for row, name in ((SINGLE, "chosen and rejected"), (HH, "HH-RLHF"), (SAFE, "PKU-SafeRLHF")):
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
