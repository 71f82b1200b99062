"""Shards written by any number of processes: claimed one by one, each made whole or not at all."""

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
from uhkd.data import DataSplits, IndexRange, span_loader
from uhkd.runs import drop_leftovers, write_atomically
from uhkd.training import Teacher

_LOG_EVERY = 15.0  # seconds between two lines on how far it is


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
    """Make every shard of the first `views` views that is missing and that nobody else is making.

    Raises:
        UhkdError: for an image that cannot be read, or signals that cannot be stored.
    """
    manifest, shards = stored.manifest, stored.shards
    claimed: deque[tuple[Shard, contextlib.ExitStack]] = deque()
    missing = shards.missing(views)
    spans = _claims(stored, missing, claimed, batch_size)
    loader = span_loader(
        data.train,
        manifest.augmentation,
        spans,
        seed=manifest.seed,
        num_classes=len(data.classes),
        workers=workers,
        device=device,
    )
    began = last_log = time.monotonic()
    images, done, teacher_seconds = 0, 0, 0.0
    bodies: list[Tensor] = []
    sums: list[np.ndarray] = []
    total = sum(shard.stop - shard.start for shard in missing)
    try:
        for batch in loader:
            since = time.monotonic()
            # what training does to its images, so that a stored signal is the live one
            image = batch.image.to(device).contiguous(memory_format=torch.channels_last)
            output = teacher.signals(batch._replace(image=image), frozenset(manifest.layout.holds))
            bodies.append(manifest.layout.encode(output))
            teacher_seconds += time.monotonic() - since
            sums.append(image_checksums(batch.image, batch.target))
            images += len(batch.index)
            shard, held = claimed[0]
            if sum(map(len, bodies)) == shard.stop - shard.start:
                rows = torch.cat(bodies).numpy()
                write_atomically(
                    stored.folder / shard.name, shards.encode(shard.view, shard.start, np.concatenate(sums), rows)
                )
                claimed.popleft()
                held.close()
                bodies, sums, done = [], [], done + len(rows)
            if time.monotonic() - last_log > _LOG_EVERY:
                last_log = time.monotonic()
                log_info(f"  {images:,} of {total:,} records, {images / (last_log - began):,.0f} a second")
    finally:
        for _, held in claimed:
            held.close()
    if done:
        seconds = time.monotonic() - began
        log_info(
            f"{done:,} records written, {done / seconds:,.0f} per second, "
            f"{teacher_seconds / seconds:.0%} of the time in the teacher"
        )


def _claims(
    stored: TeacherCache, missing: Sequence[Shard], claimed: deque[tuple[Shard, contextlib.ExitStack]], batch_size: int
) -> Iterator[IndexRange]:
    """Batches of one shard after the other, each held while it is made; taken little ahead of its making."""
    for shard in missing:
        held = contextlib.ExitStack()
        try:
            held.enter_context(hold(stored.folder, shard.name, timeout=0))
        except Timeout:
            continue
        if stored.shards.is_complete(shard):
            held.close()
            continue
        place = stored.folder / shard.name
        place.parent.mkdir(exist_ok=True)
        # of a process that was killed, as nobody else holds this
        drop_leftovers(place)
        claimed.append((shard, held))
        for start in range(shard.start, shard.stop, batch_size):
            yield IndexRange(shard.view, start, min(start + batch_size, shard.stop))


@contextlib.contextmanager
def hold(folder: Path, name: str, *, timeout: float) -> Iterator[None]:
    """Hold a name among all processes at work on a cache; a dead one holds nothing.

    Raises:
        Timeout: when another has it for longer than `timeout` seconds (below 0: wait).
    """
    file = folder / "locks" / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(exist_ok=True)
    with FileLock(file, timeout=timeout):
        yield
        file.unlink(missing_ok=True)  # whoever waited for it meanwhile looks again at what there is to do
