"""Requests that schemathesis makes up from our own schema: none ends in a server error."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import status_code_conformance

from tests.serving.running import MODEL, Running, serving

LENGTHS = "max_tokens", "max_completion_tokens", "max_output_tokens"
PATHS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/messages", "POST"),
    ("/v1/models/{name}", "GET"),
)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(timeout=20.0) as server:
        yield server


@pytest.mark.parametrize(("path", "method"), PATHS)
@pytest.mark.parametrize("named", [True, False])
def test_no_request_is_a_server_error(running: Running, path: str, method: str, named: bool) -> None:
    """Half of them name the model, so that what stands behind its name is reached; answers are kept short."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operation = schema[path][method]
    statuses = set()

    @given(case=operation.as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        body = case.body
        if isinstance(body, dict):
            if named:
                body["model"] = MODEL
            for name in (*LENGTHS, "n"):
                if isinstance(body.get(name), int):
                    body[name] = min(body[name], 3)
        response = case.call()
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text
        try:
            case.validate_response(response, checks=[status_code_conformance])
        except FailureGroup as failure:
            pytest.fail(f"{response.status_code} is not in the schema: {failure}")

    ask()
    assert statuses
    assert httpx.get(f"{running.url}/health").status_code == 200
