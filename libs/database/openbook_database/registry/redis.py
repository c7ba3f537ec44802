"""The registry in Redis (6.2 or newer): a compare-and-set script, times by the server's clock; for several hosts.

PREFIX contracts                    hash of database -> contract
PREFIX DATABASE:control             the control record
PREFIX DATABASE:snapshots           hash of id -> snapshot
PREFIX DATABASE:replicas, :routers  hash of name -> report; beside each a sorted set :seen of name -> heartbeat
PREFIX DATABASE:leases              likewise, :seen has the moments at which they expire
PREFIX DATABASE:audit               list, oldest first, the last AUDIT_LENGTH entries
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from openbook_core.errors import CorruptError, UnavailableError
from openbook_core.fingerprint import canonical_json
from openbook_core.redis import RedisUrl, clear_errors, connect
from openbook_database.contract import Contract
from openbook_database.registry.base import DEFAULT_TTL_S, Registry
from openbook_database.registry.records import REPORTS, AuditEntry, Control, KnownSnapshot, Lease, Report

AUDIT_LENGTH = 10_000
_TIMEOUT_S = 2.0
_FORGET_AFTER_TTLS = 10

# Only if the stored record still has the expected epoch and fence; no record counts as 0, 0.
_COMPARE_AND_SET = """
local stored = redis.call('GET', KEYS[1])
local epoch, fence = 0, 0
if stored then
  local record = cjson.decode(stored)
  epoch, fence = record.epoch, record.fence
end
if epoch ~= tonumber(ARGV[1]) or fence ~= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
return 1
"""

# Stores the report ARGV[2] of ARGV[1], seen at ARGV[3], and forgets names not seen since ARGV[4].
_STORE_REPORT = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4])) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
"""


class RedisRegistry(Registry):
    """A registry in the Redis at `url`: redis://[:PASSWORD@]HOST[:PORT][/DB][?prefix=TEXT], or rediss:// for TLS.

    Where the URL has no password that in OPENBOOK_REDIS_PASSWORD is used. No message names a password. `clock`
    (seconds since 1970) is the server's by default, so hosts need not agree on the time. Opening it, like every
    verb, raises UnavailableError where Redis cannot be reached within 2 s, and ArgumentError (field "registry") for
    a wrong password, a wrong database number or a wrong URL. Nothing is tried twice: the caller polls.
    """

    comes_back_empty = True

    def __init__(self, url: str, *, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] | None = None) -> None:
        super().__init__(ttl_s=ttl_s, clock=clock or self._server_time)
        self._url = RedisUrl.parse(url, setting="registry")
        self._client = connect(self._url, timeout_s=_TIMEOUT_S, extra="openbook-database[redis]")
        self._call("PING")

    def _databases(self) -> Sequence[str]:
        return sorted(self._call("HKEYS", self._key("contracts")))

    def _create_contract(self, database: str, contract: Contract) -> Contract:
        self._call("HSETNX", self._key("contracts"), database, canonical_json(contract.to_record()))
        stored = self._load_contract(database)
        if stored is None:
            raise UnavailableError(f"{self._url.place} lost the contract of {database!r} at once: try again")
        return stored

    def _load_contract(self, database: str) -> Contract | None:
        text = self._call("HGET", self._key("contracts"), database)
        where = f"{self._url.place}: contract of {database!r}"
        return None if text is None else self._parse(text, lambda record: Contract.from_record(record, where), where)

    def _load_control(self, database: str) -> Control | None:
        key = self._key(database, "control")
        text = self._call("GET", key)
        return None if text is None else self._parse(text, Control.from_record, key)

    def _compare_and_set(self, expected: Control, new: Control) -> bool:
        key = self._key(new.database, "control")
        record = canonical_json(new.to_record())
        try:
            return bool(self._call("EVAL", _COMPARE_AND_SET, 1, key, expected.epoch, expected.fence, record))
        except UnavailableError as error:
            raise UnavailableError(f"{error.message}; the change may or may not have been made, look first") from None

    def _put_snapshot(self, database: str, known: KnownSnapshot) -> None:
        self._call("HSET", self._key(database, "snapshots"), known.snapshot, canonical_json(known.to_record()))

    def _snapshots(self, database: str) -> Sequence[KnownSnapshot]:
        return self._read_all(self._key(database, "snapshots"), KnownSnapshot.from_record)

    def _store_report(self, kind: str, report: Report) -> None:
        key = self._key(report.database, kind)
        forget = report.heartbeat - _FORGET_AFTER_TTLS * self._ttl_s
        until = report.expires if isinstance(report, Lease) else report.heartbeat
        record = canonical_json(report.to_record())
        self._call("EVAL", _STORE_REPORT, 2, key, f"{key}:seen", report.name, record, until, forget)

    def _drop_report(self, kind: str, database: str, name: str) -> None:
        key = self._key(database, kind)
        self._call("HDEL", key, name)
        self._call("ZREM", f"{key}:seen", name)

    def _load_reports(self, kind: str, database: str) -> Sequence[Report]:
        return self._read_all(self._key(database, kind), REPORTS[kind].from_record)

    def _append_audit(self, database: str, entry: AuditEntry) -> None:
        key = self._key(database, "audit")
        self._call("RPUSH", key, canonical_json(entry.to_record()))
        self._call("LTRIM", key, -AUDIT_LENGTH, -1)

    def _audit(self, database: str) -> Sequence[AuditEntry]:
        key = self._key(database, "audit")
        return [self._parse(text, AuditEntry.from_record, key) for text in self._call("LRANGE", key, 0, -1)]

    # --- inside ---

    def _server_time(self) -> float:
        seconds, microseconds = self._call("TIME")
        return float(seconds) + float(microseconds) / 1e6

    def _key(self, *parts: str) -> str:
        return self._url.prefix + ":".join(parts)

    def _call(self, *command: str | int | float) -> Any:
        with clear_errors(self._url):
            return self._client.execute_command(*command)

    def _read_all(self, key: str, from_record: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """The records in a hash, by field."""
        return [self._parse(text, from_record, key) for _, text in sorted(self._call("HGETALL", key).items())]

    def _parse(self, text: str, from_record: Callable[[dict[str, Any]], Any], key: str) -> Any:
        try:
            return from_record(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{self._url.place}: {key}: cannot be read: {error!r}") from error
