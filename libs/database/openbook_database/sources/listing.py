"""Sources as they are given: globs, and lists in a YAML or JSON file."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from openbook_core.config import FrozenConfig, read_yaml
from openbook_core.errors import InputError
from openbook_database.manifest import MANIFEST_NAME
from openbook_database.sources.base import FieldNames, Source
from openbook_database.sources.formats import open_rows


class SourceList(FrozenConfig):
    """The file of `--sources`: {"sources": [{"path": ..., "weight": ..., ...}, ...]}."""

    sources: tuple[Source, ...] = Field(min_length=1)


def read_source_list(path: Path) -> list[Source]:
    """The sources that a YAML (or JSON, which is YAML) file lists; their paths are relative to the file's folder.

    Raises ConfigError that names the entry and its field.
    """
    listed = SourceList.parse(read_yaml(path), source=str(path)).sources
    return [source.model_copy(update={"path": path.parent / source.path}) for source in listed]


def expand_sources(sources: Sequence[Source | str | Path]) -> list[Source]:
    """One source for each file of a glob, in the order of their names; raises InputError for a glob without files.

    Logs and reports of builds that lie among the files are passed over: 'data/*.jsonl' stays what it is with `--out data/book`.
    """
    expanded = []
    for given in sources:
        source = given if isinstance(given, Source) else Source(path=Path(given))
        if not glob.has_magic(str(source.path)) or source.path.exists():
            expanded.append(source)
            continue
        found = sorted(path for path in glob.glob(str(source.path), recursive=True) if not _of_a_build(Path(path)))
        if not found:
            raise InputError(f"no file matches {source.path}", field="input")
        expanded += [source.model_copy(update={"path": Path(path)}) for path in found]
    return expanded


def _of_a_build(path: Path) -> bool:
    """Whether a file is the log or the report of the snapshot beside it, finished or not."""
    for suffix in (".log.jsonl", ".report.jsonl"):
        if path.name.endswith(suffix):
            out = path.with_name(path.name.removesuffix(suffix))
            return (out / MANIFEST_NAME).exists() or out.with_name(out.name + ".building").exists()
    return False


def require_files(sources: Sequence[Source]) -> None:
    """Raise InputError where a file is missing or of no known format, for a caller who prepares long before it reads."""
    for source in sources:
        for _, path in open_rows(source, FieldNames()).files():
            if not path.exists():
                raise InputError(f"{path}: no such file", field="input")


def with_all_metadata(fields: FieldNames, sources: Sequence[Source]) -> FieldNames:
    """`fields` with the kept columns of every source: one set of columns for the whole database."""
    columns: dict[str, Any] = dict.fromkeys(fields.metadata)
    for source in sources:
        columns |= dict.fromkeys(source.fields.metadata if source.fields else ())
    return fields.model_copy(update={"metadata": tuple(columns)})
