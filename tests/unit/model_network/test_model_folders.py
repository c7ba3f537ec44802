"""A save of a model that SIGKILL ends at each of its steps: the next save or load finds a whole model and no rests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from model_factory import random_model, small_config

from openbook_core.errors import NotFoundError
from openbook_model import folders, tensor_file
from openbook_model.checkpoint import load, save
from openbook_model.hashing import weights_hash

OLD, NEW, THIRD = (random_model(small_config(), seed) for seed in (0, 1, 2))


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(path: Path, prepare: Callable[[], None]) -> None:
    """Save NEW at `path` in a process that dies where `prepare` says."""
    child = os.fork()
    if not child:
        prepare()
        save(NEW, path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def while_writing() -> None:
    tensor_file.save_file = die  # type: ignore[assignment]


def at_rename(number: int) -> Callable[[], None]:
    """Before the first or second rename, after the last one for 3 (when the older folder is to be removed)."""

    def prepare() -> None:
        seen, rename, remove = [0], Path.rename, folders.shutil.rmtree

        def counted(self: Path, target: Path) -> Path:
            seen[0] += 1
            if seen[0] == number:
                die()
            return rename(self, target)

        Path.rename = counted  # type: ignore[method-assign,assignment]
        folders.shutil.rmtree = lambda path, *a, **o: (  # type: ignore[assignment,misc]
            die() if number == 3 and str(path).endswith(".old") else remove(path, *a, **o)
        )

    return prepare


@pytest.mark.parametrize(
    ("death", "left"),
    [(while_writing, OLD), (at_rename(1), OLD), (at_rename(2), NEW), (at_rename(3), NEW)],
    ids=["while writing", "before the old one stands aside", "between the names", "before the old one goes"],
)
def test_a_killed_save_leaves_a_model_and_the_next_one_clears_up(
    tmp_path: Path, death: Callable[[], None], left: object
) -> None:
    save(OLD, tmp_path / "model")
    killed(tmp_path / "model", death)
    assert len(list(tmp_path.iterdir())) > 1 or death is while_writing
    assert weights_hash(load(tmp_path / "model")) == weights_hash(left)  # type: ignore[arg-type]
    save(THIRD, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert weights_hash(load(tmp_path / "model")) == weights_hash(THIRD)


def test_a_first_save_that_is_killed_is_no_model(tmp_path: Path) -> None:
    killed(tmp_path / "model", while_writing)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(NotFoundError, match="no model at"):
        load(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_draft_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with folders.written_whole(tmp_path / "model") as draft:
        (draft / "file").write_text("half")
        save(NEW, tmp_path / "model")
        folders.mend(tmp_path / "model")
        assert (draft / "file").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_reader_never_sees_the_moment_between_two_names(tmp_path: Path) -> None:
    save(OLD, tmp_path / "model")
    over = threading.Event()

    def replace() -> None:
        for _ in range(20):
            save(NEW, tmp_path / "model")
        over.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not over.is_set():
        folder = tmp_path / "model"
        if not folder.exists():
            folders.mend(folder)
            assert folder.exists()
    writer.join()
