"""A teacher that spoke before: its signals read from a cache, alike to a live teacher's."""

from torch import Tensor

from uhkd.cache import TeacherCache
from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import TeacherFeatures
from uhkd.features import NetworkOutput
from uhkd.methods import Requirements
from uhkd.spectral import SpectralTarget, crop_indices


class CachedTeacher:
    """Says what the teacher said about the same views; no network is loaded.

    Args:
        stored: the cache; the loader delivers its records (see `uhkd.data.train_loader`, `record_reader`).
        target: spectra that a method wants, or None.
        views: how many of the cache's views are shown in turn (None: all).

    Raises:
        UhkdError: when the stored spectra are others than the method wants, the differing settings named.
    """

    def __init__(self, stored: TeacherCache, target: SpectralTarget | None = None, views: int | None = None) -> None:
        self.stored, self.layout, self.views = stored, stored.manifest.layout, views or stored.manifest.views
        self.crops: list[tuple[int, list[int] | None]] = []
        if target is not None:
            own = stored.manifest.target
            if differing := target_differences(target, own):
                raise UhkdError(
                    f"the method asks for other spectra than {stored.folder} holds: {'; '.join(differing)}; give the method the "
                    "cache's settings (--settings), or make a cache with the method's"
                )
            self.crops = [(v.teacher, crop_indices(v.full_size, v.size, v.form)) for v in target.levels]

    def signals(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Exactly the fields asked for, float32."""
        if not needs:
            return NetworkOutput()
        assert batch.record is not None, "the loader must be given the cache's records"
        output = self.layout.decode(batch.record)
        return NetworkOutput(
            logits=output.logits if "logits" in needs else None,
            spectra=self._cropped(output.spectra) if "spectra" in needs else None,
            embedding=output.embedding if "embedding" in needs else None,
        )

    def _cropped(self, spectra: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        assert spectra is not None
        return tuple(spectra[tap] if crop is None else spectra[tap][..., crop] for tap, crop in self.crops)

    def reference(self, images: Tensor) -> TeacherFeatures:
        """What diagnostics show of it: kept with the cache, on the same images (N, 3, H, W); nothing where the run has others."""
        if not self.stored.same_validation:
            return TeacherFeatures((), ())
        shown = TeacherFeatures.of({k: v.to(images.device) for k, v in self.stored.tensors("reference.").items()})
        return shown._replace(targets=self._cropped(shown.targets) if self.crops else ())

    def state(self) -> dict[str, Tensor]:
        """Nothing (tensors of any shape by name, of another teacher): a checkpoint only names the cache."""
        return {}


def target_differences(wanted: SpectralTarget, own: SpectralTarget | None) -> list[str]:
    """Settings of wanted spectra that stored ones do not meet, a few words each; empty where they can be cropped to fit."""
    if own is None:
        return ["no spectra are stored"]
    found = []
    for name in ("standardise", "channels", "whiten"):
        if getattr(wanted, name) != getattr(own, name):
            found.append(f"{name} {getattr(wanted, name)}, stored {getattr(own, name)}")
    there = {level.teacher: level for level in own.levels}
    for level in wanted.levels:
        stored = there.get(level.teacher)
        if stored is None:
            found.append(f"level {level.teacher}, stored are {sorted(there)}")
        elif level.form != stored.form:
            found.append(f"form {level.form}, stored {stored.form}")
        elif level.full_size != stored.full_size:
            found.append(
                f"{_times(level.full_size)} coefficients of level {level.teacher}, stored {_times(stored.full_size)}"
            )
    return list(dict.fromkeys(found))


def check_needs(name: str, needs: Requirements, stored: TeacherCache) -> None:
    """Refuse a method that wants what no cache of these has.

    Raises:
        UhkdError: naming the field and what is there.
    """
    holds = stored.manifest.layout.holds
    if missing := sorted(needs.teacher - set(holds)):
        raise UhkdError(
            f"{name} needs teacher {' and '.join(missing)}; the cache {stored.folder} holds {', '.join(holds)}: leave out "
            "--teacher-cache, or choose another method"
        )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
