"""Digests of sources, by which a build knows its input again and sees that it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import blake3

from openbook_core.errors import InputError
from openbook_core.fingerprint import canonical_json
from openbook_database.sources.base import FieldNames, Source
from openbook_database.sources.formats import format_of, open_rows
from openbook_database.sources.megatron import DEFAULT_TOKENIZER, load_tokenizer
from openbook_database.streams import file_digest


def digest_sources(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """For each source: name (without folders), files, size and digest as it lies on the disk, and how it is read.

    The digest of one file is its BLAKE3; of several files that of the sorted list of (name below the source, size,
    BLAKE3), so that a file that is added, removed, renamed or changed changes it.
    """
    return [_digest(source) for source in sources]


def _digest(source: Source) -> dict[str, Any]:
    files = [(name, *file_digest(path)) for name, path in open_rows(source, FieldNames()).files()]
    size = sum(size for _, size, _ in files)
    if size == 0:
        raise InputError(f"{source.path} is empty", field="input")
    several = blake3.blake3(canonical_json(sorted(files)).encode("utf-8", "surrogateescape")).hexdigest()
    record = {
        "name": source.path.name,
        "format": format_of(source),
        "files": len(files),
        "size": size,
        "blake3": files[0][2] if len(files) == 1 else several,
        "licence": source.licence,
        "weight": source.weight,
        "split": source.split,
        "fields": None if source.fields is None else source.fields.model_dump(mode="json"),
    }
    if record["format"] == "megatron":
        record["tokenizer"] = load_tokenizer(source.tokenizer or DEFAULT_TOKENIZER).fingerprint.digest
    return record
