"""Teacher outputs read from a cache, in place of a live teacher."""

from torch import Tensor

from uhkd.cache import TeacherCache
from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import TeacherFeatures
from uhkd.features import NetworkOutput
from uhkd.methods import Requirements
from uhkd.spectral import SpectralTarget, crop_indices
from uhkd.training.teacher import Teacher


class CachedTeacher:
    """The stored teacher outputs of the same views; no network is loaded.

    Args:
        stored: the cache; the loader reads its records (see `uhkd.data.train_loader`, `record_reader`).
        target: the spectra that a method needs, or None.
        views: how many views of the cache are used in turn (None: all).

    Raises:
        UhkdError: when the stored spectra do not match `target`; the message lists the differing settings.
    """

    def __init__(self, stored: TeacherCache, target: SpectralTarget | None = None, views: int | None = None) -> None:
        self.stored, self.views = stored, views or stored.manifest.views
        self.crops: list[tuple[int, list[int] | None]] = []
        if target is not None:
            if differing := target_differences(target, stored.manifest.target):
                raise UhkdError(
                    f"the method needs other spectra than {stored.folder} holds: {'; '.join(differing)}; give the method the "
                    "settings of the cache (--settings), or create another cache with those of the method"
                )
            self.crops = [(v.teacher, crop_indices(v.full_size, v.size, v.form)) for v in target.levels]

    def outputs(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Return the stored fields `needs`, float32."""
        if not needs:
            return NetworkOutput()
        assert batch.record is not None, "the loader must be given the cache's records"
        output = self.stored.manifest.record_format.decode(batch.record)
        return NetworkOutput(
            logits=output.logits if "logits" in needs else None,
            spectra=self._cropped(output.spectra) if "spectra" in needs else None,
            embedding=output.embedding if "embedding" in needs else None,
        )

    def _cropped(self, spectra: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        assert spectra is not None
        return tuple(spectra[level] if crop is None else spectra[level][..., crop] for level, crop in self.crops)

    def reference(self, images: Tensor) -> TeacherFeatures:
        """Return the features stored for diagnostics, of the images (N, 3, H, W); none if the run validates on other images."""
        if not self.stored.same_validation:
            return TeacherFeatures((), ())
        tensors = self.stored.tensors("reference.")
        features = TeacherFeatures.of({name: value.to(images.device) for name, value in tensors.items()})
        return features._replace(targets=self._cropped(features.targets) if self.crops else ())

    def state(self) -> dict[str, Tensor]:
        """Return no tensors (of any shape): a checkpoint records only the key of the cache."""
        return {}

    def each_teacher(self) -> tuple[Teacher, ...]:
        """Return no teachers: no network is loaded."""
        return ()


def target_differences(wanted: SpectralTarget, stored: SpectralTarget | None) -> list[str]:
    """Return the settings of `wanted` spectra that the stored ones do not match; empty where these can be cropped to fit."""
    if stored is None:
        return ["no spectra are stored"]
    differences = [
        f"{name} {getattr(wanted, name)}, stored {getattr(stored, name)}"
        for name in ("standardise", "channels", "whiten")
        if getattr(wanted, name) != getattr(stored, name)
    ]
    stored_levels = {level.teacher: level for level in stored.levels}
    by_level: dict[str, list[str]] = {}
    for level in wanted.levels:
        other = stored_levels.get(level.teacher)
        if other is None:
            by_level.setdefault("spectra, none stored", []).append(str(level.teacher + 1))
        elif level.form != other.form:
            differences.append(f"form {level.form}, stored {other.form}")
        elif level.full_size != other.full_size:
            radii = [(max(size) - 1) // 2 for size in (level.full_size, other.full_size)]
            by_level.setdefault(f"radius {radii[0]}, stored {radii[1]}", []).append(str(level.teacher + 1))
    differences += [
        f"{what} (level{'s' * (len(levels) > 1)} {' and '.join(levels)})" for what, levels in by_level.items()
    ]
    return list(dict.fromkeys(differences))


def check_needs(name: str, needs: Requirements, stored: TeacherCache) -> None:
    """Check that a cache holds every teacher field that the method `name` needs.

    Raises:
        UhkdError: listing the missing and the stored fields.
    """
    holds = stored.manifest.record_format.holds
    if missing := sorted(needs.teacher - set(holds)):
        raise UhkdError(
            f"{name} needs teacher {' and '.join(missing)}; the cache {stored.folder} holds {', '.join(holds)}: leave out "
            "--teacher-cache, or choose another method"
        )
