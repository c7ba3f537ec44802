"""The benchmark's own arithmetic: turns, memory from /proc, the figures of given trials."""

import json
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMAPS = """7f0000000000-7f0000002000 r--s 00000000 08:01 42                         /books/one/shard-00000/lists.faiss
Size:                  8 kB
KernelPageSize:        4 kB
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
7f0000002000-7f0000006000 rw-p 00000000 08:01 43                         /books/one/shard-00000/my tokens.bin (deleted)
Size:                 16 kB
Rss:                  12 kB
Anonymous:             4 kB
7f0000006000-7f0000106000 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                 512 kB
Anonymous:           512 kB
7f0000106000-7f0000107000 r--s 00000000 08:01 44                         /books/one-more/lists.faiss
Size:                  4 kB
Rss:                   4 kB
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """`measure` and `first_path_figures`, imported as the script imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import first_path_figures
    import measure

    yield measure, first_path_figures
    for name in ("first_path_figures", "measure"):
        sys.modules.pop(name)


def test_sides_take_turns_in_both_orders(modules: tuple[ModuleType, ModuleType]) -> None:
    measure, _ = modules
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    trials = measure.in_turns({name: lambda name=name: side(name) for name in "ab"}, 3, budget_s=60)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert trials == {"a": [1, 4, 5], "b": [2, 3, 6]}


@pytest.mark.parametrize(("least", "rounds"), [(1, 1), (2, 2), (9, 3)])
def test_a_spent_budget_ends_the_rounds_but_not_before_the_least(
    modules: tuple[ModuleType, ModuleType], least: int, rounds: int
) -> None:
    measure, _ = modules
    trials = measure.in_turns({"a": lambda: 1}, 3, budget_s=-1, least=least)
    assert len(trials["a"]) == rounds


def test_mappings_below_the_folder_count_and_no_others(modules: tuple[ModuleType, ModuleType]) -> None:
    measure, _ = modules
    found = measure.mapped_files(SMAPS, Path("/books/one"))
    assert (found.mapped, found.resident, found.private_copy) == (24 * 1024, 16 * 1024, 4 * 1024)
    assert measure.mapped_files(SMAPS, Path("/books/two")).mapped == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps")
def test_the_kernel_tells_a_mapped_file_from_a_private_copy(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    measure, _ = modules
    size = 256 << 20  # much more than what the test process itself may free meanwhile
    path = tmp_path / "book.bin"
    path.write_bytes(b"x" * size)

    def anonymous() -> int:
        return int(measure.anonymous_bytes(Path("/proc/self/smaps_rollup").read_text()))

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        start = anonymous()
        pages = [view[place] for place in range(0, size, mmap.PAGESIZE)]
        found = measure.mapped_files(Path("/proc/self/smaps").read_text(), tmp_path)
        assert (found.mapped, found.resident, found.private_copy) == (size, size, 0)
        assert anonymous() - start < size // 4
        for place in range(len(pages)):
            view[place * mmap.PAGESIZE] = 0
        assert measure.mapped_files(Path("/proc/self/smaps").read_text(), tmp_path).private_copy == size
        assert anonymous() - start >= size * 3 // 4


def test_a_result_is_written_whole_and_replaces_another(modules: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    measure, _ = modules
    path = tmp_path / "results" / "x.json"
    measure.write_result(path, {"a": 1})
    with pytest.raises(TypeError):
        measure.write_result(path, {"a": object()})
    measure.write_result(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def searches(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"p50_ms": p50, "queries_per_s": rate} for p50, rate in pairs]


def parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    build = {
        "dtype": "float32",
        "model": "encoder",
        "trials": [
            {"chunks": 100, "wall_s": 10.0, "network_s": 9.0},
            {"chunks": 100, "wall_s": 4.0, "network_s": 2.0},
            {"chunks": 100, "wall_s": 5.0, "network_s": 4.0},
        ],
    }
    search = {
        "index": {"factory": "Flat"},
        "batches": [1, 64],
        "trials": {
            "batch_1": {"service": searches((3, 9), (1, 9), (2, 9)), "in_process": searches((0.1, 90))},
            "batch_64": {"service": searches((9, 10), (9, 30), (9, 20)), "in_process": searches((1, 80), (1, 40))},
        },
    }

    def decoding(off: float, on: float) -> dict[str, Any]:
        return {"off": [{"tokens_per_s": off}], "on": [{"tokens_per_s": on}]}

    decode = {
        "dtype": "float32",
        "model": "decoder",
        "on_means": "random parts",
        "batches": [1, 4],
        "trials": {"batch_1": decoding(20, 15), "batch_4": decoding(60, 50)},
    }
    shard = {"anonymous_empty": 50e6, "anonymous_control": 90e6, "anonymous_after": 92e6}
    shard |= {"control_documents": 2, "mapped": 9e6, "resident": 8e6, "private_copy": 0}
    return build, search, decode, {"shard-0": shard}


def test_figures_are_medians_of_the_trials(modules: tuple[ModuleType, ModuleType]) -> None:
    _, figures = modules
    result = figures.summarise(*parts())
    assert {key: value for key, value in result.items() if key != "raw"} == {
        "chunks_per_s": 20.0,
        "encoder_share": 0.8,
        "search_p50_ms": 2.0,
        "search_throughput_ratio": round(20 / 60, 4),
        "tokens_per_s_off": 20.0,
        "tokens_per_s_on": 15.0,
    }
    assert json.loads(json.dumps(result)) == result


def test_the_printed_lines_say_what_on_means_and_how_memory_is_held(modules: tuple[ModuleType, ModuleType]) -> None:
    _, figures = modules
    result = figures.summarise(*parts())
    result["raw"] |= {"cores": 2, "cpu": "a processor", "load_1m_before": 0.5, "load_1m_after": 3.0}
    text = "\n".join(figures.report(result))
    for part in ("load 0.5 before, 3.0 after", "20.0 chunks/s, 80%", "ratio 0.333", "ON 15.0", "ON: random parts"):
        assert part in text
    assert "maps 9.0 MB of the snapshot (8.0 MB present, 0 bytes of it copied)" in text
    assert "private 50.0 MB empty, +40.0 MB with a control of 2 documents, then +2.0 MB with this one" in text
