"""What a service refuses or cannot do, named by who must act. Delivery code turns these into pages and JSON.

Every error has a stable `code` for programs, a `message` that names the object, and a `hint`: what to do about it.
Neither may hold key material: both are shown, logged and kept with the job.
"""

from typing import ClassVar


class ServiceError(Exception):
    """Base of all; raise one of the kinds below."""

    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code = code
        self.message = message
        self.hint = hint


class Invalid(ServiceError):
    """The input is empty, malformed or contradicts itself. The caller corrects it."""

    http_status = 422


class Refused(ServiceError):
    """The actor lacks the right, or a rule of the product forbids it."""

    http_status = 403


class NotFound(ServiceError):
    """No such object, or none that the actor may see."""

    http_status = 404


class Conflict(ServiceError):
    """The object's present state does not allow it."""

    http_status = 409


class Unavailable(ServiceError):
    """A host, key server or other outside system did not answer. Trying again may help."""

    http_status = 503
    retryable = True


class Untrusted(ServiceError):
    """Trust was required and is missing. Recorded, never retried."""

    http_status = 403
