"""Stored teacher signals: what a teacher said about replayable views, in shards, for many students, methods and seeds."""

from uhkd.cache.checksums import picture_sums
from uhkd.cache.folder import Manifest, Stored, identity_of, write_manifest
from uhkd.cache.record import Layout
from uhkd.cache.shards import DamagedShard, Shard, Shards

__all__ = [
    "DamagedShard",
    "Layout",
    "Manifest",
    "Shard",
    "Shards",
    "Stored",
    "identity_of",
    "picture_sums",
    "write_manifest",
]
