"""Vectors to neighbours: one program with the roles shard and router.

A shard process serves shards of snapshots that it maps from disk (`shard_engine`, `holdings`, `shard_watch`); the
router is what clients call: it resolves the live snapshot once per request, asks one replica of every shard for
exactly that snapshot and merges (`router_engine`, `router_watch`, `coalescing`, `fan_out`, `replicas`). Start either with
`app.serve(config)` or `python -m openbook_retriever`.
"""
