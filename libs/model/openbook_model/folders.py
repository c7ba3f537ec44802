"""Folders that are written whole: a hidden draft beside the place, then its name; what a killed writer left is mended.

A writer holds a lock on its draft `.NAME.ID` for as long as it lives, so a draft that can be locked is nobody's. Drafts
begin, and the names change, under a lock on the folder around them.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbook_core.files import sync


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `target` by one rename where the block raises nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    old = draft.with_name(f"{draft.name}.old")
    with _locked(target.parent):
        _mend(target)
        draft.mkdir()
        held = _lock(draft, fcntl.LOCK_EX)
    try:
        yield draft
        for file in draft.iterdir():
            sync(file)
        with _locked(target.parent):
            if target.exists():
                target.rename(old)
            draft.rename(target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(held)


def mend(target: Path) -> None:
    """Finish or remove what killed writers of `target` left; nothing where the folder around it cannot be changed."""
    if os.access(target.parent, os.R_OK | os.W_OK):
        with _locked(target.parent):
            _mend(target)


def _mend(target: Path) -> None:
    draft_name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{32}")
    for path in sorted(target.parent.iterdir()):
        name = path.name.removesuffix(".old")
        if not draft_name.fullmatch(name):
            continue
        if path.name != name:  # the older folder; its successor was whole before it stood aside
            if not target.exists():
                path.rename(target)
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            held = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            continue
        if path.with_name(f"{name}.old").exists() and not target.exists():
            path.rename(target)
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _lock(folder: Path, how: int) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    held = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(held)
