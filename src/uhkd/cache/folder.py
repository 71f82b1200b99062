"""A cache's folder: what it holds, of whom, and whether that is what a training asks for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load
from torch import Tensor

from uhkd.cache.checksums import image_checksums
from uhkd.cache.record import RecordFormat
from uhkd.cache.shards import Shards
from uhkd.data import Augmentation
from uhkd.errors import UhkdError
from uhkd.features import OutputShapes
from uhkd.recipe import MANIFEST_KEYS, MOST_VIEWS, rename_keys
from uhkd.runs import write_atomically, write_tensors
from uhkd.spectral import FTM, SpectralTarget

_FORM = 2  # of the folder; raised when its files change their meaning


@dataclass(frozen=True)
class Manifest:
    """cache.json: all that a reader must know, without the teacher.

    identity: what the records depend on, by name; two caches of equal identity hold the same. shapes: the teacher's. target:
    of the FTM, every tap by itself. teacher_metrics: on the validation part, whose fingerprint is `validation`. environment:
    versions and machine of the writer. words: how the teacher was asked for, beside its name. tensors: checksum of
    teacher.safetensors, set when that is written.
    """

    identity: dict[str, Any]
    images: int
    views: int
    layout: RecordFormat
    augmentation: Augmentation
    seed: int
    shapes: OutputShapes
    levels: tuple[str, ...]
    target: SpectralTarget | None
    teacher: str
    teacher_metrics: dict[str, float]
    environment: dict[str, Any]
    teacher_options: dict[str, Any] = field(default_factory=dict)
    tensors: str = ""
    validation: str = ""

    @property
    def key(self) -> str:
        """32 hexadecimal digits that change with anything the records depend on."""
        return _digest(_canonical(self.identity))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored views."""
        return self.augmentation.size


class TeacherCache:
    """A cache on disk.

    cache.json; teacher.safetensors (FTM statistics, probe, and what diagnostics show of the teacher); recipe.yaml,
    environment.json; view-V/shard-S.bin; locks/.

    Raises:
        UhkdError: when nothing readable lies there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read(self.folder)
        self.shards = Shards(self.folder, self.manifest.images, self.manifest.layout.size, self.manifest.key)
        self._rows: np.ndarray | None = None
        self.same_validation = True

    def as_json(self) -> dict[str, Any]:
        """Where it lies and what it holds, as plain data."""
        manifest, layout = self.manifest, self.manifest.layout
        return {
            "folder": str(self.folder),
            "teacher": manifest.teacher,
            "teacher_metrics": dict(manifest.teacher_metrics),
            "images": manifest.images,
            "views": manifest.views,
            "fields": list(layout.holds),
            "storage": layout.storage,
            "bytes_a_record": layout.size,
            "shards_missing": len(self.shards.missing(manifest.views)),
        }

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether a cache was begun there."""
        return (Path(folder) / "cache.json").is_file()

    @staticmethod
    def begin(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor], keys: np.ndarray | None = None) -> None:
        """Write all but the shards; the manifest last, it says that the rest is there.

        Args:
            tensors: of any shape, by name.
            keys: (N,) uint64 of named samples.
        """
        file = folder / "teacher.safetensors"
        if keys is not None:
            tensors = {**tensors, "keys": torch.from_numpy(keys.view(np.int64))}
        write_tensors(file, tensors)
        write_manifest(folder, replace(manifest, tensors=_digest(file.read_bytes())))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Tensors, of any shape, of teacher.safetensors whose names begin with `prefix`, without it."""
        file = self.folder / "teacher.safetensors"
        try:
            content = file.read_bytes()
            if _digest(content) != self.manifest.tensors:
                raise UhkdError("it is not what was written")
            found = load(content)
        except Exception as error:  # a damaged file can fail in any way
            raise UhkdError(f"{file} is missing or damaged: the cache must be made anew ({error})") from error
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    def keys(self) -> np.ndarray | None:
        """(N,) uint64 keys of the samples; None where images are known by their position alone.

        Raises:
            UhkdError: as `tensors`.
        """
        found = self.tensors("keys").get("")
        return None if found is None else found.numpy().view(np.uint64)

    def serve(self, keys: np.ndarray | None) -> int:
        """Let positions of a training part with these keys mean the records of the same samples; how many of them have none."""
        own = None if keys is None else self.keys()
        if keys is None or own is None:
            return 0
        order = np.argsort(own)
        places = np.minimum(np.searchsorted(own, keys, sorter=order), len(own) - 1)
        self._rows = order[places]
        return int((own[self._rows] != keys).sum())

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(B,) where the records of images by their position in the training part lie."""
        return index if self._rows is None else self._rows[index]

    def read_records(
        self, view: int, index: np.ndarray, image: UInt8[Tensor, "b 3 h w"], target: Float[Tensor, "b k"] | None
    ) -> UInt8[np.ndarray, "b n"]:
        """Records for a training loader (`uhkd.data.train_loader`), each view compared with the one that the teacher saw.

        Raises:
            UhkdError: for a damaged record, or a view that is another one.
        """
        return self.shards.read_for(view, self.rows(index), image_checksums(image, target))

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """Which of the given facts are others here, a line each."""
        own = self.manifest.identity
        return [
            f"{name}: the cache has {own.get(name)!r}, asked for is {value!r}"
            for name, value in json.loads(json.dumps(identity)).items()
            if own.get(name) != value
        ]


def identity_of(
    *,
    teacher: str,
    weights: str,
    reading: Mapping[str, Any],
    precision: str,
    data: str,
    augmentation: Augmentation,
    seed: int,
    classes: int,
    layout: RecordFormat,
    levels: tuple[str, ...],
    target: SpectralTarget | None,
    ftm: FTM | None,
) -> dict[str, Any]:
    """What a cache's records depend on, as plain data.

    teacher (with its probe), weights (without), data: fingerprints. reading: how the teacher reads an image, and other words
    of its own that its weights do not show.
    """
    return json.loads(
        json.dumps(
            {
                "teacher": teacher,
                "teacher weights": weights,
                **{f"teacher {name}": value for name, value in reading.items()},
                "precision": precision,
                "data": data,
                **{f"view {name}": value for name, value in asdict(augmentation).items()},
                "view seed": seed,
                "classes": classes,
                "holds": layout.holds,
                "storage": layout.storage,
                "teacher levels": levels,
                "spectra": None if target is None else asdict(target),
                "standardisation": None if ftm is None else _hash_state(ftm),
            }
        )
    )


def _hash_state(ftm: FTM) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in ftm.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write cache.json, atomically."""
    content = {"format": _FORM, "key": manifest.key, **asdict(manifest)}
    content["sum"] = _digest(_canonical(content))
    write_atomically(folder / "cache.json", json.dumps(content, indent=1) + "\n")


def _read(folder: Path) -> Manifest:
    file = folder / "cache.json"
    if not file.is_file():
        raise UhkdError(f"{folder} holds no stored signals (no cache.json); make them with: uhkd cache --out {folder}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        form = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UhkdError(f"{file} is damaged ({error}): the cache must be made anew") from error
    if form != _FORM:
        raise UhkdError(
            f"{file} is of format {form}, this version reads {_FORM}: make the cache anew, or use its version"
        )
    try:
        if document.pop("sum") != _digest(_canonical(document)):
            raise UhkdError("it is not what was written")
        return _manifest(rename_keys(document, MANIFEST_KEYS))
    except (TypeError, KeyError, ValueError) as error:
        raise UhkdError(f"{file} is damaged ({error}): the cache must be made anew") from error


def _manifest(document: Mapping[str, Any]) -> Manifest:
    """Of plain data, every type checked: checksums keep chance away, not a forger.

    Raises:
        UhkdError: in a few words.
    """
    try:
        manifest = TypeAdapter(Manifest).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise UhkdError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    if manifest.images < 1 or not 1 <= manifest.views <= MOST_VIEWS:
        raise UhkdError(
            f"{manifest.images} images, {manifest.views} views: expected 1 or more, and at most {MOST_VIEWS:,} views"
        )
    return manifest


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
