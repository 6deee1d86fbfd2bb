"""Answers that follow a JSON schema: a mask on the guided distribution, by llguidance."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from parm_mlx.errors import first_line
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.settings import MAX_SCHEMA

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Grammars over the tokens of one tokenizer."""

    def __init__(self, tokenizer: TokenizerWrapper, vocabulary: int) -> None:
        self._wrapped, self._vocabulary = tokenizer, vocabulary

    @cached_property
    def _tokenizer(self) -> Any:
        import llguidance.hf

        own = self._wrapped._tokenizer
        ends = sorted(self._wrapped.eos_token_ids)
        return llguidance.hf.from_tokenizer(own, n_vocab=max(self._vocabulary, len(own)), eos_token=ends)

    def matcher(self, schema: Mapping[str, Any]) -> Callable[[], Any]:
        """Returns what makes the state of a grammar, at its beginning.

        Raises:
            RequestError: The schema is too large, not one, or needs what llguidance does not know.
        """
        import llguidance

        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise RequestError(f"the schema has more than {MAX_SCHEMA} bytes", param="response_format")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=STYLE)
            first = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
            first.compute_bitmask()
            problem = first.get_error() if first.is_error() else "it asks for nothing" if first.is_accepting() else ""
        except Exception as error:
            problem = first_line(error)
        if problem:
            raise RequestError(f"the schema is refused: {problem[:300]}", param="response_format")
        return first.deep_copy
