"""Writing of shards by any number of processes, which claim them one by one; each shard is written atomically."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from uhkd.cache import Shard, TeacherCache, image_checksums
from uhkd.console import log_info
from uhkd.data import DataSplits, IndexRange, range_loader
from uhkd.runs import drop_leftovers, write_atomically
from uhkd.training.teacher import Teacher

_LOG_EVERY = 15.0  # seconds


def write_shards(
    stored: TeacherCache,
    teacher: Teacher,
    data: DataSplits,
    views: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> None:
    """Write every missing shard of the first `views` views that no other process is writing.

    Raises:
        UhkdError: an image cannot be read, or outputs cannot be stored.
    """
    manifest, shards = stored.manifest, stored.shards
    claimed: deque[tuple[Shard, contextlib.ExitStack]] = deque()
    missing = shards.missing(views)
    loader = range_loader(
        data.train,
        manifest.augmentation,
        _claims(stored, missing, claimed, batch_size),
        seed=manifest.seed,
        num_classes=len(data.classes),
        workers=workers,
        device=device,
    )
    began = last_log = time.monotonic()
    images, done, teacher_seconds = 0, 0, 0.0
    records: list[Tensor] = []
    checksums: list[np.ndarray] = []
    total = sum(shard.stop - shard.start for shard in missing)
    try:
        for batch in loader:
            since = time.monotonic()
            # as in training, so that stored and live outputs are equal
            image = batch.image.to(device).contiguous(memory_format=torch.channels_last)
            output = teacher.outputs(batch._replace(image=image), frozenset(manifest.record_format.holds))
            records.append(manifest.record_format.encode(output))
            teacher_seconds += time.monotonic() - since
            checksums.append(image_checksums(batch.image, batch.target))
            images += len(batch.index)
            shard, lock = claimed[0]
            if sum(map(len, records)) == shard.stop - shard.start:
                rows = torch.cat(records).numpy()
                content = shards.encode(shard.view, shard.start, np.concatenate(checksums), rows)
                write_atomically(stored.folder / shard.name, content)
                claimed.popleft()
                lock.close()
                records, checksums, done = [], [], done + len(rows)
            if time.monotonic() - last_log > _LOG_EVERY:
                last_log = time.monotonic()
                log_info(f"  {images:,} of {total:,} records, {images / (last_log - began):,.0f} per second")
    finally:
        for _, lock in claimed:
            lock.close()
    if done:
        seconds = time.monotonic() - began
        log_info(
            f"{done:,} records written, {done / seconds:,.0f} per second, "
            f"{teacher_seconds / seconds:.0%} of the time in the teacher"
        )


def _claims(
    stored: TeacherCache, missing: Sequence[Shard], claimed: deque[tuple[Shard, contextlib.ExitStack]], batch_size: int
) -> Iterator[IndexRange]:
    """Yield the batches of one shard after the other; a shard is locked shortly before its first batch is computed."""
    for shard in missing:
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(hold(stored.folder, shard.name, timeout=0))
        except Timeout:
            continue
        if stored.shards.is_complete(shard):
            lock.close()
            continue
        file = stored.folder / shard.name
        file.parent.mkdir(exist_ok=True)
        drop_leftovers(file)  # of a killed process, because this one has the lock
        claimed.append((shard, lock))
        for start in range(shard.start, shard.stop, batch_size):
            yield IndexRange(shard.view, start, min(start + batch_size, shard.stop))


@contextlib.contextmanager
def hold(folder: Path, name: str, *, timeout: float) -> Iterator[None]:
    """Lock a name among all processes that write a cache; a lock ends with its process.

    Raises:
        Timeout: another process has the lock for longer than `timeout` seconds (below 0: wait without limit).
    """
    file = folder / "locks" / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(exist_ok=True)
    with FileLock(file, timeout=timeout):
        yield
        file.unlink(missing_ok=True)  # a process that waited for it checks again what is missing
