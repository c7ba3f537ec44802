"""Builds a snapshot: chunk, embed, train-index, add, finish.

Kill it at any moment and run it again: the result is the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbook_core.errors import ArgumentError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.build.add_stage import run_add_stage, split_documents
from openbook_database.build.base import Base, open_base
from openbook_database.build.chunk_stage import run_chunk_stage
from openbook_database.build.corpus import Corpus
from openbook_database.build.device import uses_gpu
from openbook_database.build.embed_stage import run_embed_stage
from openbook_database.build.engine import Engine, LocalEngine
from openbook_database.build.finish_stage import run_finish_stage
from openbook_database.build.progress import Progress, Stage
from openbook_database.build.recall import recall_note
from openbook_database.build.recipe import make_recipe
from openbook_database.build.settings import BuildSettings
from openbook_database.build.shares import Links, Ranges, outgrown, share_shards, skewed
from openbook_database.build.train_stage import run_train_stage, training_rows
from openbook_database.build.workspace import Workspace
from openbook_database.cleaning.evaluation import digest_evaluation
from openbook_database.encoder import Encoder
from openbook_database.index.recipe import AUTO, Recipe, parse_recipe, resolve_recipe
from openbook_database.manifest import Manifest, totals
from openbook_database.reader import Source
from openbook_database.registry.base import check_database_name
from openbook_database.sources.digest import digest_sources
from openbook_database.sources.listing import expand_sources, with_all_metadata


@dataclass(frozen=True)
class BuildResult:
    """The snapshot. `reused`: it was there already; `resumed`: an interrupted build was gone on with.

    `seconds`: of this run, by stage; `skipped`: bad lines, by kind; `removed`: documents left out on purpose, by reason.
    `shared`: with a base, how many documents, chunks and shards of this snapshot were taken from it.
    """

    path: Path
    snapshot_id: str
    documents: int
    chunks: int
    shards: int
    reused: bool
    resumed: bool
    skipped: dict[str, int]
    removed: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared: dict[str, int] = field(default_factory=dict)


def build_snapshot(
    sources: Sequence[Source | str | Path],
    out: str | Path,
    *,
    database: str,
    tokenizer: Tokenizer,
    encoder: Encoder,
    settings: BuildSettings | None = None,
    base: str | Path | None = None,
    device: str = "auto",
    progress: Progress = lambda update: None,
    engine: Engine | None = None,
) -> BuildResult:
    """Build the snapshot of `sources` in the folder `out`, or go on with a build that was interrupted.

    A source is a file or folder of any format of `sources.formats`, or a glob, which stands for its files in order.
    The stages chunk, train-index and finish run in this process,
    embed and add where `engine` has them done (default: here too). A
    finished snapshot of the same input and settings is left alone. Work in progress lies in OUT.building/, the log in
    OUT.log.jsonl, and where documents are cleaned OUT.report.jsonl names each one that was left out and why: `id`,
    `source`, `kind`, and `of` (the document that it equals) or `item`, `rule`, `jaccard` and `run` (see
    `cleaning.decontaminate`). `notes` of the result say what was done otherwise than asked (fewer shards, less recall).
    base: the folder of an earlier snapshot of the same contract and compute type. Only documents that are new or have
    another text or title are encoded; shards keep the base's borders, and files of unchanged ones are shared.
    device: "cpu", "cuda" or "auto", where Faiss trains and assigns (not the
    encoder, which has a device of its own); a quantiser trained on a GPU has other bytes.
    Raises InputError (input that cannot be used, a broken encoder, a disk that cannot be written), ArgumentError (an index
    recipe that does not fit the encoder's dimension or the number of chunks, or no such device), ConfigError (work or
    a snapshot that was begun with other settings or input, each difference named) and ConflictError (another build
    into the same folder). None of them leaves anything half-written that a next run trips over.
    """
    check_database_name(database)
    settings, engine = settings or BuildSettings(), engine or LocalEngine()
    if settings.index != AUTO:
        parse_recipe(settings.index).require_dimension(encoder.dimension)
    gpu = uses_gpu(device)
    resolved = expand_sources(sources)
    if not resolved:
        raise InputError("no input file was given", field="input")
    settings = settings.model_copy(update={"fields": with_all_metadata(settings.fields, resolved)})
    work = Workspace(Path(out), None if base is None else Path(base).absolute())
    evaluation = digest_evaluation(settings.cleaning.evaluation)
    recipe = make_recipe(database, digest_sources(resolved), tokenizer.fingerprint, encoder, settings, evaluation)
    begun_from = open_base(work)
    if begun_from is not None:
        begun_from.require_same(recipe)
        recipe |= begun_from.record
    manifest = work.finished(recipe)
    if manifest is not None and not work.building.exists():
        return _result(work, manifest, settings, reused=True)
    with work.locked():
        manifest = work.finished(recipe)
        if manifest is not None:
            work.discard()
            return _result(work, manifest, settings, reused=True)
        resumed = work.begin(recipe, encoder.arithmetic)
        begun = {"out": str(work.out), "database": database, "device": device, "dtype": encoder.dtype}
        work.log.write("resume" if resumed else "start", **begun, encoder=dict(encoder.arithmetic))
        run = _Run(resolved, recipe, tokenizer, encoder, settings, begun_from, work, progress, engine, gpu)
        manifest = run.stages()
        work.publish()
        work.discard()
        work.log.write("finish", snapshot=manifest.snapshot_id, seconds=run.seconds)
        return _result(work, manifest, settings, reused=False, resumed=resumed, seconds=run.seconds, shared=run.shared)


def recorded_dtype(out: str | Path) -> str | None:
    """Compute type of the encoder in the snapshot or the unfinished build at `out`, None where there is neither.

    Whoever chooses the type by timing must stay with it, or the choice would differ from run to run.
    """
    recipe = Workspace(Path(out)).recorded_recipe()
    return None if recipe is None else str(recipe["encoder"]["dtype"])


@dataclass(frozen=True)
class _Run:
    """The stages of one build. `seconds` is by stage, `shared` counts what the base gave."""

    sources: Sequence[Source]
    recipe: dict[str, Any]
    tokenizer: Tokenizer
    encoder: Encoder
    settings: BuildSettings
    base: Base | None
    work: Workspace
    progress: Progress
    engine: Engine
    gpu: bool
    seconds: dict[str, float] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)

    def stages(self) -> Manifest:
        settings, work, encoder, base = self.settings, self.work, self.encoder, self.base
        with self._stage("chunk", None) as stage, _input_may_be_corrected(work):
            source_bytes = [source["size"] for source in self.recipe["sources"].values()]
            chunked = run_chunk_stage(self.sources, source_bytes, self.tokenizer, settings, work, stage, base)
            _require_unchanged(self.sources, settings, self.recipe)
            corpus = Corpus(work, settings.chunk_length)
            index = base.index if base is not None else self._index(corpus.chunks)
        work.log.write("index", factory=index.factory, given=settings.index, device="cuda" if self.gpu else "cpu")
        ranges, links = self._shards(corpus)
        with self._stage("embed", corpus.encoded_chunks) as stage:
            run_embed_stage(corpus, self.tokenizer, encoder, settings, work, stage, self.engine)
        if index.trained:
            with self._stage("train-index", training_rows(index, corpus.chunks, encoder.dimension, settings)) as stage:
                run_train_stage(corpus, index, encoder.dimension, settings, work, stage, gpu=self.gpu)
        with self._stage("add", corpus.chunks) as stage:
            run_add_stage(corpus, ranges, index, encoder.dimension, settings, work, stage, self.engine, gpu=self.gpu)
        with self._stage("finish", corpus.chunks) as stage:
            manifest = run_finish_stage(
                corpus,
                ranges,
                chunked,
                self.recipe,
                index,
                self.tokenizer,
                encoder,
                settings,
                work,
                links,
                stage.reach(corpus.chunks),
            )
        return manifest

    def _index(self, chunks: int) -> Recipe:
        settings = self.settings
        return resolve_recipe(settings.index, chunks, self.encoder.dimension, settings.memory, settings.shards)

    def _shards(self, corpus: Corpus) -> tuple[Ranges, Links]:
        """Document ranges of the shards, and the files that some of them have from the base."""
        if self.base is None:
            return split_documents(corpus.document_rows, self.settings.shards), {}
        ranges, links = share_shards(corpus, self.base, self.work.snapshot)
        self.shared.update(
            documents=int((corpus.base_documents >= 0).sum()),
            chunks=corpus.chunks - corpus.encoded_chunks,
            shards=len(links),
        )
        return ranges, links

    @contextmanager
    def _stage(self, name: str, total: int | None) -> Iterator[Stage]:
        with Stage(name, total, self.progress, self.work.log) as stage:
            yield stage
        self.seconds[name] = stage.seconds


@contextmanager
def _input_may_be_corrected(work: Workspace) -> Iterator[None]:
    """Discard the work where the input or the index recipe cannot be used: the corrected one is another one, which it must
    not bar."""
    try:
        yield
    except (InputError, ArgumentError) as error:
        if error.field in ("input", "decontaminate", "index", "memory"):
            work.discard()
        raise


def _require_unchanged(sources: Sequence[Source], settings: BuildSettings, recipe: dict[str, Any]) -> None:
    now = {"sources": digest_sources(sources), "evaluation": digest_evaluation(settings.cleaning.evaluation)}
    paths = {"sources": [source.path for source in sources], "evaluation": settings.cleaning.evaluation}
    for kind, records in now.items():
        for place, record in enumerate(records):
            if record != recipe[kind][str(place)]:
                raise InputError(
                    f"{paths[kind][place]} changed while it was being read: the work was discarded, build it again once "
                    "it is complete",
                    field="input",
                )


def _result(
    work: Workspace,
    manifest: Manifest,
    settings: BuildSettings,
    *,
    reused: bool,
    resumed: bool = False,
    seconds: dict[str, float] | None = None,
    shared: dict[str, int] | None = None,
) -> BuildResult:
    shards = len(manifest.shards)
    notes = []
    if shards < settings.shards:
        why = "the others have become empty" if "base" in manifest.recipe else "a shard holds whole documents"
        notes.append(f"{shards} shards were made instead of {settings.shards}: {why}")
    if "base" in manifest.recipe and (note := skewed([shard.rows for shard in manifest.shards])):
        notes.append(note)
    if (note := outgrown(manifest)) is not None:
        notes.append(note)
    if (note := recall_note(manifest.index)) is not None:
        notes.append(note)
    return BuildResult(
        path=work.out,
        snapshot_id=manifest.snapshot_id,
        documents=manifest.documents,
        chunks=manifest.chunks,
        shards=shards,
        reused=reused,
        resumed=resumed,
        skipped=totals(manifest.sources, "skipped"),
        removed=totals(manifest.sources, "removed"),
        seconds=seconds or {},
        notes=tuple(notes),
        shared=shared or {},
    )
