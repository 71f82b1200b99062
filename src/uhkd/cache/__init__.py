"""Teacher outputs for replayable views of the training images, stored in shards for any number of students and methods."""

from uhkd.cache.checksums import image_checksums
from uhkd.cache.folder import Manifest, TeacherCache, identity_of, write_manifest
from uhkd.cache.record import RecordFormat
from uhkd.cache.shards import CorruptShard, Shard, Shards

__all__ = [
    "CorruptShard",
    "Manifest",
    "RecordFormat",
    "Shard",
    "Shards",
    "TeacherCache",
    "identity_of",
    "image_checksums",
    "write_manifest",
]
