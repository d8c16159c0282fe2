"""What the service answers when it does not do what it was asked for."""

from http import HTTPStatus

CLIENT_GONE = 499  # nobody reads it: in logs and metrics alone, as nginx calls it


class Refusal(Exception):
    """An answer in place of a result.

    Args:
        status: of HTTP.
        reason: one line: what was wrong, what was expected, what to do.
        headers: further ones.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers or {}


class BadRequestError(Refusal):
    """The request is not of the form that is documented."""

    def __init__(self, reason: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, reason)
