"""JSON logs with request ids, and the metrics that all services share."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from contextvars import ContextVar
from typing import TextIO

from prometheus_client import Histogram, start_http_server

from openbook_core.errors import Reason, UnavailableError

RPC_SECONDS = Histogram("openbook_rpc_seconds", "Time of each RPC in seconds", ["method", "code"])

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """The id of the request that this thread or task works on; empty outside of one."""
    return _request_id.get()


def bind_request_id(value: str | None) -> str:
    """Take over the caller's id if it may stand in logs and headers, or make one."""
    usable = value and len(value) <= 128 and value.isascii() and value.isprintable()
    chosen = value if value and usable else secrets.token_hex(8)
    _request_id.set(chosen)
    return chosen


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id():
            entry["request_id"] = request_id()
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a record comes, which outlives a redirection that has ended."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def setup_logging(service: str, level: str = "info") -> None:
    """One JSON object a line on stderr, from every logger of the process."""
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


def serve_metrics(host: str, port: int) -> None:
    """Prometheus' default registry over HTTP, on a thread of its own. Raises UnavailableError where the port is taken."""
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot listen on {host}:{port}: {error.strerror}; stop what uses the port or choose another with "
            "--metrics-port",
            field="metrics_port",
            reason=Reason.PORT_IN_USE,
        ) from error
