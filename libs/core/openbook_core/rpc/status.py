"""OpenbookError to a gRPC status with google.rpc details, and back."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from openbook_core.errors import (
    ERRORS_BY_CODE,
    MismatchError,
    OpenbookError,
    PreconditionError,
    Reason,
    UnavailableError,
)

DOMAIN = "openbook"


def status_from_error(error: OpenbookError) -> status_pb2.Status:
    """ErrorInfo always; BadRequest where a field is named; RetryInfo where a delay is known."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)]
    packed = [_pack(details[0])]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        packed.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=0)
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message, details=packed)


def error_from_rpc(error: grpc.RpcError, peer: str) -> OpenbookError:
    """The error that a service raised, or the transport's, with the peer named where nobody answered."""
    call: grpc.Call = error
    code = call.code()
    status = rpc_status.from_call(call)
    if status is None:
        kind = ERRORS_BY_CODE.get(code.name, OpenbookError)
        message = f"{peer}: {code.name}: {call.details() or code.name}"
        if kind is UnavailableError:
            message = f"{_unreachable(peer, call.details() or '')} ({code.name}: {call.details()})"
        return kind(message, peer=peer)
    return error_from_status(status)


def error_from_status(status: status_pb2.Status) -> OpenbookError:
    """The inverse of `status_from_error`."""
    kind = ERRORS_BY_CODE.get(code_pb2.Code.Name(status.code), OpenbookError)
    field, retry_after, reason = None, None, None
    metadata: dict[str, str] = {}
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            metadata = dict(info.metadata)
            reason = Reason(info.reason) if info.reason in Reason.__members__ else None
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if kind is PreconditionError and reason in (Reason.FINGERPRINT_MISMATCH, Reason.CONTRACT_MISMATCH):
        kind = MismatchError
    return kind(status.message, field=field, reason=reason, retry_after_s=retry_after, **metadata)


def _unreachable(peer: str, details: str) -> str:
    if any(word in details.lower() for word in ("handshake", "ssl", "certificate", "verification")):
        return (
            f"no TLS connection to {peer}; does it serve TLS, is --tls-ca the CA of its certificate and {peer} (or "
            "--tls-server-name) in it, and does it ask for a client's certificate?"
        )
    return (
        f"nothing answers at {peer}; is it running, is that its HOST:PORT, and does it ask for TLS or a client's "
        "certificate (--tls-ca, --tls-certificate)?"
    )


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
