"""What may go wrong between us and the API server."""

from __future__ import annotations


class ApiError(Exception):
    """A request failed. Base of all errors of this package, so ``except ApiError`` is enough for a retry.

    ``status`` is the HTTP status (0: no answer at all), ``reason`` and ``message`` come from the answer's
    ``Status`` body (API conventions, "Response Status Kind"), ``method`` and ``path`` say what was asked.
    """

    def __init__(self, status: int, reason: str, message: str, method: str = "", path: str = "") -> None:
        super().__init__(status, reason, message, method, path)
        self.status = status
        self.reason = reason
        self.message = message
        self.method = method
        self.path = path

    def __str__(self) -> str:
        asked = f"{self.method} {self.path}: " if self.path else ""
        status = f"{self.status} " if self.status else ""
        return f"{asked}{status}{self.reason}: {self.message}"


class BadRequest(ApiError):
    """400 or 422: the object or patch is not valid; trying again does not help."""


class Unauthorized(ApiError):
    """401: the token or certificate is not accepted (any more)."""


class Forbidden(ApiError):
    """403: RBAC does not allow it; the message names the missing permission."""


class NotFound(ApiError):
    """404: no such object, or no such resource (its CRD is not installed)."""


class Conflict(ApiError):
    """409: someone else changed the object, holds the field, or it already exists (reason AlreadyExists)."""


class Gone(ApiError):
    """410: the resource version or continue token is too old; list again."""


class Unreachable(ApiError):
    """No usable answer: no connection, the connection was lost, the deadline passed, or it was not JSON."""

    def __init__(self, message: str, method: str = "", path: str = "") -> None:
        super().__init__(0, "Unreachable", message, method, path)


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: BadRequest,
}


def api_error(status: int, reason: str, message: str, method: str, path: str) -> ApiError:
    """The error of the class that stands for *status*."""
    return _BY_STATUS.get(status, ApiError)(status, reason, message, method, path)
