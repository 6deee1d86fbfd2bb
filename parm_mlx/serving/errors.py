"""Errors as OpenAI's clients read them, and Anthropic's."""

from typing import Any


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        param: The field that is wrong.
        code: A short name of the problem, for programs.
        headers: Of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def content(self) -> dict[str, Any]:
        """The body of the response."""
        return content(str(self), self.status, self.param, self.code)


KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def content(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error: OpenAI's shape, with the ``type`` beside it that Anthropic's has."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"message": message, "type": kind, "param": param, "code": code}}


class BusyError(Exception):
    """The queue of the engine is full."""


class ClosedError(Exception):
    """The engine takes no more requests."""
