"""The folder of a cache: manifest, tensors of the teacher, records, and comparison with what a training needs."""

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
from uhkd.recipe import MANIFEST_KEYS, MOST_VIEWS, path_hint, rename_keys
from uhkd.runs import write_atomically, write_tensors
from uhkd.spectral import FTM, SpectralTarget

_FORMAT = 2  # version of the folder; raised when its files change their meaning
_FIRST_RESIZE = ("view resize", "crop")


@dataclass(frozen=True)
class Manifest:
    """Content of cache.json: all facts that a reader needs without the teacher.

    identity: the facts on which the records depend, by name; caches of equal identity hold equal records. views: per image.
    seed: of the views. shapes, levels: of the teacher. target: of the FTM, one teacher layer per level. teacher_metrics: on the
    validation split with the fingerprint `validation`. environment: versions and machine of the writer. teacher_options: further
    options by which the teacher was built. tensors: checksum of teacher.safetensors, set when that file is written.
    """

    identity: dict[str, Any]
    images: int
    views: int
    record_format: RecordFormat
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
        """32 hexadecimal digits, a digest of `identity`, without the resize of caches written before there was a choice."""
        return _digest(_canonical({k: v for k, v in self.identity.items() if (k, v) != _FIRST_RESIZE}))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored views."""
        return self.augmentation.size


class TeacherCache:
    """A cache on disk.

    Its folder holds cache.json; teacher.safetensors (FTM statistics, linear probe, and features for diagnostics); recipe.yaml,
    environment.json; view-V/shard-S.bin; locks/.

    Raises:
        UhkdError: the folder holds no readable cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read(self.folder)
        self.shards = Shards(self.folder, self.manifest.images, self.manifest.record_format.size, self.manifest.key)
        self._rows: np.ndarray | None = None
        self.same_validation = True

    def to_json(self) -> dict[str, Any]:
        """Return path and content as plain data."""
        manifest, record_format = self.manifest, self.manifest.record_format
        return {
            "folder": str(self.folder),
            "teacher": manifest.teacher,
            "teacher_metrics": dict(manifest.teacher_metrics),
            "images": manifest.images,
            "views": manifest.views,
            "fields": list(record_format.holds),
            "storage": record_format.storage,
            "bytes_a_record": record_format.size,
            "shards_missing": len(self.shards.missing(manifest.views)),
        }

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Return whether the folder holds a cache, complete or not."""
        return (Path(folder) / "cache.json").is_file()

    @staticmethod
    def create(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor], keys: np.ndarray | None = None) -> None:
        """Write everything but the shards; the manifest last, so that its presence means that the rest is complete.

        Args:
            tensors: of any shape, by name.
            keys: (N,) uint64 keys of named samples.
        """
        file = folder / "teacher.safetensors"
        if keys is not None:
            tensors = {**tensors, "keys": torch.from_numpy(keys.view(np.int64))}
        write_tensors(file, tensors)
        write_manifest(folder, replace(manifest, tensors=_digest(file.read_bytes())))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors, of any shape, of teacher.safetensors whose names begin with `prefix`, under names without it.

        Raises:
            UhkdError: the file is missing or damaged.
        """
        file = self.folder / "teacher.safetensors"
        try:
            content = file.read_bytes()
            if _digest(content) != self.manifest.tensors:
                raise UhkdError("its checksum differs")
            tensors = load(content)
        except Exception as error:  # a damaged file can fail in any way
            raise UhkdError(
                f"{file} is missing or damaged ({error}); create the cache again in a new folder"
            ) from error
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def keys(self) -> np.ndarray | None:
        """Return the (N,) uint64 keys of the samples, or None if images are identified by index only.

        Raises:
            UhkdError: as `tensors`.
        """
        keys = self.tensors("keys").get("")
        return None if keys is None else keys.numpy().view(np.uint64)

    def map_keys(self, keys: np.ndarray | None) -> int:
        """Map the images of a training split to records by sample key; return how many images have no record.

        keys: (M,) uint64 of the training split. Without keys on either side image i has record i.
        """
        stored = None if keys is None else self.keys()
        if keys is None or stored is None:
            return 0
        order = np.argsort(stored)
        self._rows = order[np.minimum(np.searchsorted(stored, keys, sorter=order), len(stored) - 1)]
        return int((stored[self._rows] != keys).sum())

    def row_indices(self, index: np.ndarray) -> np.ndarray:
        """Return the (B,) record numbers of images given by their (B,) indices in the training split."""
        return index if self._rows is None else self._rows[index]

    def read_records(
        self, view: int, index: np.ndarray, image: UInt8[Tensor, "b 3 h w"], target: Float[Tensor, "b k"] | None
    ) -> UInt8[np.ndarray, "b n"]:
        """Return the records of a training batch (see `uhkd.data.train_loader`) after comparing the checksums of its views.

        Raises:
            UhkdError: a record is damaged, or a view differs from the one that the teacher received.
        """
        return self.shards.read_for(view, self.row_indices(index), image_checksums(image, target))

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """Return one line per given fact that differs in this cache."""
        stored = dict([_FIRST_RESIZE]) | self.manifest.identity
        return [
            f"{name}: the cache has {stored.get(name)!r}, expected {value!r}"
            for name, value in json.loads(json.dumps(identity)).items()
            if stored.get(name) != value
        ]


def identity_of(
    *,
    teacher: Mapping[str, Any],
    precision: str,
    data: str,
    classes: int,
    augmentation: Augmentation,
    seed: int,
    record_format: RecordFormat,
    ftm: FTM | None,
) -> dict[str, Any]:
    """Return the facts on which the records of a cache depend, as plain data.

    Args:
        teacher: "fingerprint" (with its linear probe), "weights" (fingerprint without it), "levels" (names of its layers), and
            any further facts that its weights do not show, such as the normalization of its input.
        data: fingerprint of the data.
        seed: of the views.
    """
    further = {f"teacher {k}": v for k, v in teacher.items() if k not in ("fingerprint", "levels")}
    identity = {
        "teacher": teacher["fingerprint"],
        **further,
        "precision": precision,
        "data": data,
        **{f"view {name}": value for name, value in asdict(augmentation).items()},
        "view seed": seed,
        "classes": classes,
        "holds": record_format.holds,
        "storage": record_format.storage,
        "teacher levels": teacher["levels"],
        "spectra": None if ftm is None else asdict(ftm.target),
        "standardisation": None if ftm is None else _hash_state(ftm),
    }
    return json.loads(json.dumps(identity))


def _hash_state(ftm: FTM) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in ftm.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write cache.json atomically."""
    content = {"format": _FORMAT, "key": manifest.key, **asdict(manifest)}
    content["sum"] = _digest(_canonical(content))
    write_atomically(folder / "cache.json", json.dumps(content, indent=1) + "\n")


def _read(folder: Path) -> Manifest:
    file = folder / "cache.json"
    if not file.is_file():
        hint = path_hint(folder, TeacherCache.exists) or f"; create one with: uhkd cache --out {folder}"
        raise UhkdError(f"{folder} is not a cache (no cache.json){hint}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = document["format"]
        if version == _FORMAT:
            if document.pop("sum") != _digest(_canonical(document)):
                raise UhkdError("its checksum differs")
            return _parse_manifest(rename_keys(document, MANIFEST_KEYS))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UhkdError(f"{file} is damaged ({error}); create the cache again in a new folder") from error
    raise UhkdError(
        f"{file} is of format {version}, this version reads {_FORMAT}; create the cache again in a new folder, or use the "
        "version of uhkd that wrote it"
    )


def _parse_manifest(document: Mapping[str, Any]) -> Manifest:
    """Return the manifest of plain data after checking every type: checksums detect damage, not forgery.

    Raises:
        UhkdError: a field has another type or is out of range.
    """
    try:
        manifest = TypeAdapter(Manifest).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise UhkdError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    if manifest.images < 1 or not 1 <= manifest.views <= MOST_VIEWS:
        raise UhkdError(
            f"{manifest.images} images, {manifest.views} views: expected at least 1 of each, and at most {MOST_VIEWS:,} views"
        )
    return manifest


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
