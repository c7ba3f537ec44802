"""Work in progress beside the snapshot: DIR.building/ with its lock and recipe, DIR.log.jsonl."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from openbook_core.errors import ConfigError, ConflictError, CorruptError, InputError
from openbook_core.files import sync
from openbook_core.fingerprint import canonical_json, differences, shortened
from openbook_database.build.progress import BuildLog
from openbook_database.files import clear_write_errors, write_bytes_atomically
from openbook_database.manifest import MANIFEST_NAME, Manifest
from openbook_database.shard import shard_folder
from openbook_database.snapshot import check_files


class Workspace:
    """Paths of one build, and the guards against mixing two."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.building = self.out.with_name(self.out.name + ".building")
        self.documents = self.building / "documents"
        self.chunks = self.building / "chunks"
        self.vectors = self.building / "vectors"
        self.snapshot = self.building / "snapshot"
        self.log = BuildLog(self.out.with_name(self.out.name + ".log.jsonl"))
        self._recipe = self.building / "recipe.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the build's lock; raises ConflictError where another process builds into the same folder."""
        while True:
            with clear_write_errors(self.building):
                self.building.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.building / "lock", timeout=0)
                try:
                    lock.acquire()
                except Timeout:
                    raise ConflictError(
                        f"another build writes into {self.out}: wait for it, or choose another folder", field="out"
                    ) from None
            # The build that held the lock may have finished, and removed the file, while this one opened it.
            if (self.building / "lock").exists():
                break
            lock.release()
        try:
            yield
        finally:
            lock.release()

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
            return self._read_recipe()
        return None

    def _read_recipe(self) -> dict[str, Any]:
        try:
            recipe: dict[str, Any] = json.loads(self._recipe.read_bytes())
        except ValueError as error:
            raise CorruptError(f"{self._recipe}: is not JSON: {error}; delete {self.building}") from error
        return recipe

    def begin(self, recipe: Mapping[str, Any]) -> bool:
        """Note the recipe, or compare it with that of the work to resume; True where there is some."""
        if self._recipe.exists():
            require_same(
                self._read_recipe(),
                recipe,
                f"{self.building} holds work that was begun otherwise",
                "delete it, or run with what it was begun with",
            )
            for leftover in self.building.rglob("*.tmp"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            return True
        for folder in (self.documents, self.chunks, self.vectors, self.snapshot):
            shutil.rmtree(folder, ignore_errors=True)
        write_bytes_atomically(self._recipe, canonical_json(recipe).encode())
        return False

    def publish(self) -> None:
        """Make the finished snapshot appear under its name by one rename."""
        with clear_write_errors(self.out):
            for folder in [path for path in self.snapshot.rglob("*") if path.is_dir()] + [self.snapshot]:
                sync(folder)
            os.replace(self.snapshot, self.out)
            sync(self.out.parent)

    def discard(self) -> None:
        """Remove the work in progress."""
        shutil.rmtree(self.building, ignore_errors=True)


def require_same(earlier: Mapping[str, Any], now: Mapping[str, Any], what: str, advice: str) -> None:
    """Raise ConfigError with `what`, each field that differs with both values, and `advice`; nothing where none does."""
    found = differences(earlier, now)
    if found:
        listing = "; ".join(f"{field}: was {shortened(old)}, now {shortened(new)}" for field, old, new in found)
        raise ConfigError(f"{what}: {listing}. Please {advice}", field=found[0][0])
