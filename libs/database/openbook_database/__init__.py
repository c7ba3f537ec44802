"""The book: snapshot format, building, reading, registry.

Where to look (every name below is public; nothing heavy is imported here):

- `encoder.Encoder`                            what a build needs of an embedder (a protocol)
- `build.erase.erase_documents(snapshot, ids, out)`, `diff.SnapshotDiff(a, b)`, `gc.collect(registries, under)`
- `contract.Contract`                          what all snapshots of one database agree on
- `build.run.build_snapshot(sources, out, ...)` -> `BuildResult`; settings in `build.settings.BuildSettings`
- `snapshot.Snapshot.open(path, verify=...)`   -> `.id .manifest .documents .tokenizer .shards .search(...)`
- `shard.Shard`                                `.search .tokens .text .documents_of`, mapped from disk
- `scoring.merge(parts, k)`                    answers of several shards into one
- `verify.verify(path)`, `inspect.inspect(path)`
- `registry.open_registry(url)`: in a directory or in Redis (extra `redis`); verbs in `registry.base.Registry`

A chunk id is the 64-bit row in the snapshot's canonical order; a document number is the place of the document
in that order (by external id). Both mean nothing without the snapshot id.
"""
