"""Work in progress beside the snapshot: DIR.building/ with its lock and recipe, DIR.log.jsonl, and the report of
what was cleaned away, DIR.report.jsonl."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openbook_core.errors import CorruptError, InputError
from openbook_core.fingerprint import canonical_json
from openbook_database.build.progress import BuildLog
from openbook_database.files import write_bytes_atomically
from openbook_database.manifest import MANIFEST_NAME, Manifest
from openbook_database.shard import shard_folder
from openbook_database.snapshot import check_files
from openbook_database.work_folder import appear, locked, require_same


class Workspace:
    """Paths of one build, and the guards against mixing two."""

    def __init__(self, out: Path, base: Path | None = None) -> None:
        """`base`: the folder of the snapshot that the build begins from."""
        self.base = base
        self.out = out.absolute()
        self.building = self.out.with_name(self.out.name + ".building")
        self.documents = self.building / "documents"
        self.chunks = self.building / "chunks"
        self.order = self.building / "documents.order"
        self.encoded = self.building / "encoded.order"
        self.columns = self.building / "columns.tmp"
        self.tokenizer = self.building / "tokenizer"
        self.removed = self.building / "removed"
        self.vectors = self.building / "vectors"
        self.snapshot = self.building / "snapshot"
        self.log = BuildLog(self.out.with_name(self.out.name + ".log.jsonl"))
        self.report = self.out.with_name(self.out.name + ".report.jsonl")
        self._recipe = self.building / "recipe.json"
        self._arithmetic = self.building / "arithmetic.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the build's lock; raises ConflictError where another process builds into the same folder."""
        with locked(self.building, self.out, "build"):
            yield

    def finished(self, recipe: Mapping[str, Any]) -> Manifest | None:
        """The manifest of a snapshot that is finished, or None.

        Raises ConfigError where it was built otherwise, CorruptError where a file is missing or has another size.
        """
        if not self.out.exists():
            return None
        if not self.out.is_dir() or (any(self.out.iterdir()) and not (self.out / MANIFEST_NAME).exists()):
            raise InputError(f"{self.out} exists and is no snapshot: choose another folder", field="out")
        if not any(self.out.iterdir()):
            return None
        manifest = Manifest.read(self.out)
        require_same(
            manifest.recipe, recipe, f"{self.out} holds a snapshot that was built otherwise", "choose another folder"
        )
        check_files(self.out, manifest, "sizes", {shard_folder(number) for number in range(len(manifest.shards))})
        return manifest

    def recorded_recipe(self) -> dict[str, Any] | None:
        """The recipe of the finished snapshot, or else of the work in progress; None where there is neither."""
        if (self.out / MANIFEST_NAME).exists():
            return dict(Manifest.read(self.out).recipe)
        if self._recipe.exists():
            return _read_json(self._recipe, self.building)
        return None

    def begin(self, recipe: Mapping[str, Any], arithmetic: Mapping[str, str | int]) -> bool:
        """Note the recipe and the encoder's arithmetic, or compare them with those of the work to resume; True where there
        is some. The arithmetic is not part of the snapshot: it tells vectors apart only in their last bits."""
        if self._recipe.exists():
            require_same(
                _read_json(self._recipe, self.building),
                recipe,
                f"{self.building} holds work that was begun otherwise",
                "delete it, or run with what it was begun with",
            )
            require_arithmetic(
                _read_json(self._arithmetic, self.building),
                arithmetic,
                f"{self.building} holds vectors that were begun with another arithmetic",
            )
            self.sweep()
            return True
        for folder in (self.documents, self.chunks, self.removed, self.vectors, self.snapshot):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.order, self.encoded):
            file.unlink(missing_ok=True)
        write_bytes_atomically(self._arithmetic, canonical_json(dict(arithmetic)).encode())
        write_bytes_atomically(self._recipe, canonical_json(recipe).encode())
        return False

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for leftover in self.building.rglob("*.tmp"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def publish(self) -> None:
        """Make the finished snapshot appear under its name by one rename."""
        appear(self.snapshot, self.out)

    def discard(self) -> None:
        """Remove the work in progress."""
        shutil.rmtree(self.building, ignore_errors=True)


def _read_json(path: Path, building: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, FileNotFoundError) as error:
        raise CorruptError(f"{path}: is not JSON: {error}; delete {building}") from error
    return record


def require_arithmetic(earlier: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError where an encoder rounds otherwise than the one that the build began with."""
    advice = (
        "go on with the kind of processor, embedder and number of threads that it was begun with, or delete the work"
    )
    require_same(earlier, now, what, advice)
