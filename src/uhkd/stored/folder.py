"""A cache's folder: what it holds, of whom, and whether that is what a training asks for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from uhkd.data import Augmentation
from uhkd.runs import write_atomically, write_tensors
from uhkd.spectral import FTM, Level, SpectralTarget
from uhkd.stored.layout import Layout
from uhkd.stored.shards import Shards
from uhkd.taps import SideShapes

_FORM = 1  # of the folder; raised when its files change their meaning


@dataclass(frozen=True)
class Manifest:
    """cache.json: all that a reader must know, without the teacher.

    identity: what the records depend on, by name; two caches of equal identity hold the same. shapes: the teacher's. target:
    of the FTM, every tap by itself. teacher_metrics: on the validation part. environment: versions and machine of the writer.
    """

    identity: dict[str, Any]
    images: int
    views: int
    layout: Layout
    augmentation: Augmentation
    seed: int
    shapes: SideShapes
    levels: tuple[str, ...]
    target: SpectralTarget | None
    teacher: str
    teacher_metrics: dict[str, float]
    environment: dict[str, Any]

    @property
    def key(self) -> str:
        """32 hexadecimal digits that change with anything the records depend on."""
        return hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored views."""
        return self.augmentation.size


class Stored:
    """A cache on disk.

    cache.json; teacher.safetensors (FTM statistics, probe, and what diagnostics show of the teacher); recipe.yaml,
    environment.json; view-V/shard-S.bin; locks/.

    Raises:
        ValueError: when nothing readable lies there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read(self.folder)
        self.shards = Shards(self.folder, self.manifest.images, self.manifest.layout.size, self.manifest.key)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether a cache was begun there."""
        return (Path(folder) / "cache.json").is_file()

    @staticmethod
    def begin(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        """Write all but the shards; the manifest last, it says that the rest is there."""
        write_tensors(folder / "teacher.safetensors", tensors)
        write_manifest(folder, manifest)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Tensors of teacher.safetensors whose names begin with `prefix`, without it."""
        file = self.folder / "teacher.safetensors"
        try:
            found = load_file(file)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"{file} is missing or damaged: the cache must be made anew ({error})") from error
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    def ftm(self) -> FTM | None:
        """The FTM that made the spectra, with its statistics."""
        if self.manifest.target is None:
            return None
        ftm = FTM(self.manifest.target, self.manifest.shapes.maps)
        ftm.load_state_dict(self.tensors("ftm."))
        return ftm

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
    data: str,
    augmentation: Augmentation,
    seed: int,
    classes: int,
    layout: Layout,
    levels: tuple[str, ...],
    target: SpectralTarget | None,
    ftm: FTM | None,
) -> dict[str, Any]:
    """What a cache's records depend on, as plain data. teacher (with its probe), weights (without), data: fingerprints."""
    return json.loads(
        json.dumps(
            {
                "teacher": teacher,
                "teacher weights": weights,
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
    write_atomically(folder / "cache.json", json.dumps(content, indent=1) + "\n")


def _read(folder: Path) -> Manifest:
    file = folder / "cache.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no stored signals (no cache.json); make them with: uhkd cache --out {folder}")
    try:
        said = json.loads(file.read_text())
        form, key = said.pop("format"), said.pop("key")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): the cache must be made anew") from error
    if form != _FORM:
        raise ValueError(
            f"{file} is of format {form}, this version reads {_FORM}: make the cache anew, or use its version"
        )
    try:
        target = said["target"]
        manifest = Manifest(
            **said
            | {
                "layout": Layout(**said["layout"] | {"spectra": _tuples(said["layout"]["spectra"])}),
                "augmentation": Augmentation(**said["augmentation"] | {"size": tuple(said["augmentation"]["size"])}),
                "shapes": SideShapes(**said["shapes"] | {"maps": _tuples(said["shapes"]["maps"])}),
                "levels": tuple(said["levels"]),
                "target": target and SpectralTarget(**target | {"levels": tuple(map(_level, target["levels"]))}),
            }
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): the cache must be made anew") from error
    if manifest.key != key:
        raise ValueError(f"{file} is damaged (its fields do not give its key): the cache must be made anew")
    return manifest


def _tuples(lists: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(item) for item in lists)


def _level(said: Mapping[str, Any]) -> Level:
    own = said["own"]
    return Level(said["student"], said["teacher"], tuple(said["size"]), said["form"], own and tuple(own))
