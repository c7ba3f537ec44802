"""Errors for people, and how they travel over gRPC and HTTP.

Each error says what was given, what was expected and what to do. `reason` is one value of `Reason`, stable for
programs; `field` names the setting or request field at fault. Over gRPC an error becomes a status with
google.rpc details (`openbook_core.rpc.status`), over HTTP a JSON body with the code in `http_status`.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable reasons; one place, never reused with another meaning."""

    BAD_ARGUMENT = "BAD_ARGUMENT"
    BAD_INPUT = "BAD_INPUT"
    CONFIG_INVALID = "CONFIG_INVALID"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CORRUPT = "CORRUPT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    FINGERPRINT_MISMATCH = "FINGERPRINT_MISMATCH"
    CONTRACT_MISMATCH = "CONTRACT_MISMATCH"
    SNAPSHOT_NOT_LOADED = "SNAPSHOT_NOT_LOADED"
    SNAPSHOT_RETIRED = "SNAPSHOT_RETIRED"
    SNAPSHOT_MIX = "SNAPSHOT_MIX"
    SHARD_UNAVAILABLE = "SHARD_UNAVAILABLE"
    SWAP_CONFLICT = "SWAP_CONFLICT"
    NOT_READY = "NOT_READY"
    OVERLOADED = "OVERLOADED"
    DEADLINE = "DEADLINE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    PORT_IN_USE = "PORT_IN_USE"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class OpenbookError(Exception):
    """Base of all errors that a user can cause or can do something about."""

    reason: Reason = Reason.INTERNAL
    http_status: int = 500
    grpc_code: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        reason: Reason | None = None,
        retry_after_s: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if reason is not None:
            self.reason = reason
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}


class ArgumentError(OpenbookError, ValueError):
    """The caller's mistake in one named field: INVALID_ARGUMENT, HTTP 400."""

    reason = Reason.BAD_ARGUMENT
    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class ConfigError(ArgumentError):
    """A configuration file or option that does not load."""

    reason = Reason.CONFIG_INVALID


class InputError(ArgumentError):
    """A document file, checkpoint or other input that cannot be used."""

    reason = Reason.BAD_INPUT


class NotFoundError(OpenbookError):
    """An unknown database, snapshot, model or file."""

    reason = Reason.NOT_FOUND
    http_status = 404
    grpc_code = "NOT_FOUND"


class CorruptError(OpenbookError):
    """Bytes that differ from their checksum or manifest."""

    reason = Reason.CORRUPT
    grpc_code = "DATA_LOSS"


class MismatchError(OpenbookError):
    """Two parts that must agree (fingerprint, contract) and do not; the message names both sides field by field."""

    reason = Reason.FINGERPRINT_MISMATCH
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class PreconditionError(OpenbookError):
    """The state does not allow it: a retired or unloaded snapshot, a swap that is not prepared."""

    reason = Reason.SNAPSHOT_NOT_LOADED
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class ConflictError(OpenbookError):
    """Somebody else changed the record first, or holds the lock: ABORTED."""

    reason = Reason.SWAP_CONFLICT
    http_status = 409
    grpc_code = "ABORTED"


class UnavailableError(OpenbookError):
    """A part that is down, not ready or unreachable; trying later may help."""

    reason = Reason.UNAVAILABLE
    http_status = 503
    grpc_code = "UNAVAILABLE"


class OverloadedError(OpenbookError):
    """Refused by admission; `retry_after_s` says when to come back."""

    reason = Reason.OVERLOADED
    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"


class DeadlineError(OpenbookError):
    """The caller's deadline passed before the work was done."""

    reason = Reason.DEADLINE
    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class AuthenticationError(OpenbookError):
    """A call without a token, or with one that does not count here."""

    reason = Reason.UNAUTHENTICATED
    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class ForbiddenError(OpenbookError):
    """A token that is known, without the scope that the call needs."""

    reason = Reason.PERMISSION_DENIED
    http_status = 403
    grpc_code = "PERMISSION_DENIED"


ERRORS_BY_CODE: dict[str, type[OpenbookError]] = {
    "INVALID_ARGUMENT": ArgumentError,
    "NOT_FOUND": NotFoundError,
    "DATA_LOSS": CorruptError,
    "FAILED_PRECONDITION": PreconditionError,
    "ABORTED": ConflictError,
    "UNAVAILABLE": UnavailableError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": ForbiddenError,
    "INTERNAL": OpenbookError,
}
