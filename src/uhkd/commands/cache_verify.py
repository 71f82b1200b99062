"""`cache verify`: comparison of all records with their checksums, and of a sample with the teacher."""

from typing import Any

import numpy as np
import torch

from uhkd.cache import CorruptShard, TeacherCache, image_checksums
from uhkd.console import log_info, print_result
from uhkd.data import IndexRange, range_loader
from uhkd.errors import UhkdError
from uhkd.models import fingerprint
from uhkd.recipe import CacheRecipe, SourceOptions, build, load_yaml
from uhkd.recipe.arguments import VerifyArguments
from uhkd.runs import RunFolder
from uhkd.training import Teacher
from uhkd.training.cache_checks import data_mismatch
from uhkd.training.cache_writer import cache_inputs
from uhkd.training.load_teacher import prepare_teacher

# largest difference of a recomputed output beyond the rounding of its storage, relative to the root mean square of its field: the
# rounding in the network depends on batch and machine
_SLACK = {"bf16": 2e-2, "fp32": 1e-3}


def verify_cache(arguments: VerifyArguments) -> dict[str, Any]:
    """Compare every shard with its checksums; recompute a sample: views must be bit-equal, outputs equal up to rounding.

    Returns:
        The number of records read and recomputed, and by how much the outputs of each field exceed the rounding of storage.

    Raises:
        UhkdError: shards or records differ; all of them are named.
    """
    stored = TeacherCache(arguments.cache)
    bad, checked = 0, 0
    for view in range(stored.manifest.views):
        for shard in stored.shards.of_view(view):
            try:
                stored.shards.check(shard)
                checked += shard.stop - shard.start
            except CorruptShard as error:
                bad += 1
                log_info(f"  {error.problem}")
    if bad:
        raise UhkdError(
            f"shards of {stored.folder} that are damaged or missing: {bad} (named above); rewrite only these with: "
            f"uhkd cache -c {stored.folder} --out {stored.folder}"
        )
    (log_info if arguments.sample else print_result)(f"{checked:,} records read, all checksums are correct")
    excess = _compare_sample(stored, arguments) if arguments.sample else {}
    return {"records": checked, "sample": arguments.sample, "beyond_rounding": excess}


def _compare_sample(stored: TeacherCache, arguments: VerifyArguments) -> dict[str, float]:
    manifest = stored.manifest
    options = load_yaml(RunFolder(stored.folder).recipe) | {"out": str(stored.folder), "device": arguments.device}
    options |= arguments.model_dump(include={"data", "teacher", *SourceOptions.model_fields}, exclude_defaults=True)
    recipe = build(CacheRecipe, options)
    inputs, precision = cache_inputs(recipe)
    data, fabric = inputs.data, inputs.fabric
    if stored.differences({"data": data.fingerprint}):
        differing = [data_mismatch(recipe, stored), *stored.differences({"classes": len(data.classes)})]
        raise UhkdError(f"the images differ from those of {stored.folder}: {'; '.join(differing)}")
    network, _ = prepare_teacher(recipe, inputs, skip_evaluation=True)
    if differing := stored.differences({"teacher": fingerprint(network)}):
        raise UhkdError(f"the teacher differs from that of {stored.folder}: {'; '.join(differing)}")
    teacher = Teacher(network, manifest.target, fabric.autocast)
    if teacher.ftm is not None:
        teacher.ftm.load_state_dict(stored.tensors("ftm."))
    sample = np.random.default_rng().integers((manifest.views, manifest.images), size=(arguments.sample, 2)).tolist()
    loader = range_loader(
        data.train,
        manifest.augmentation,
        [IndexRange(view, index, index + 1) for view, index in sample],
        seed=manifest.seed,
        num_classes=len(data.classes),
    )
    worst: dict[str, float] = {}  # by field
    other_views: list[str] = []
    for (view, index), batch in zip(sample, loader, strict=True):
        rows = np.array([index])
        if image_checksums(batch.image, batch.target)[0] != stored.shards.checksums(view, rows)[0]:
            other_views.append(f"image {index} of view {view}")
            continue
        image = batch.image.to(fabric.device).contiguous(memory_format=torch.channels_last)
        live = teacher.outputs(batch._replace(image=image), frozenset(manifest.record_format.holds))
        recorded = manifest.record_format.decode(torch.from_numpy(stored.shards.read(view, rows)))
        pairs = zip(manifest.record_format.tolerance(live), manifest.record_format.tolerance(recorded), strict=True)
        for (name, x, allowed), (_, y, _) in pairs:
            excess = ((x - y).abs() - allowed).clamp_min(0).max() / x.square().mean().sqrt().clamp_min(1e-12)
            worst[name] = max(worst.get(name, 0.0), float(excess))
    if other_views:
        raise UhkdError(
            f"{len(other_views)} of {arguments.sample} views differ from those that the teacher received "
            f"({', '.join(other_views[:3])}): files have changed, or a library augments differently from the version in "
            f"{stored.folder / 'environment.json'}"
        )
    for name, share in worst.items():
        log_info(
            f"  {name}: at most {share:.1e} of the root mean square beyond the rounding of {manifest.record_format.storage}"
        )
    slack = max(_SLACK[precision], _SLACK.get(str(manifest.environment.get("precision")), 0.0))
    if differing := [name for name, share in worst.items() if share > slack]:
        raise UhkdError(
            f"{', '.join(differing)} of {arguments.sample} records differ from the current teacher outputs by more than "
            f"{slack:g} of their root mean square: the precision differs, a library is broken, or the teacher is not in eval mode"
        )
    print_result(f"{arguments.sample} records recomputed: views are bit-equal, outputs equal up to rounding")
    return worst
