"""`cache verify`: every record against its checksum, and a sample against the teacher itself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from uhkd.cache import CorruptShard, TeacherCache, image_checksums
from uhkd.console import log_info, print_result
from uhkd.data import IndexRange, span_loader
from uhkd.errors import UhkdError
from uhkd.models import fingerprint
from uhkd.recipe import CacheRecipe, build, load_yaml
from uhkd.recipe.arguments import VerifyArguments
from uhkd.runs import RunFolder
from uhkd.training import Teacher
from uhkd.training.cache_checks import data_mismatch
from uhkd.training.inputs import Inputs, open_recipe_data
from uhkd.training.load_teacher import prepare_teacher
from uhkd.training.machine import choose_device, make_fabric

# how far a signal made anew may lie from the first one beyond the rounding of its storage, as a share of the field's root mean
# square: a network's own rounding depends on the batch and the machine
_SLACK = {"bf16": 2e-2, "fp32": 1e-3}


def verify_cache(arguments: VerifyArguments) -> dict[str, Any]:
    """Read every shard against its checksums; then make a sample anew: views bit-equal, signals to the rounding of their storage.

    Returns the counts of records read and made anew, and how far the signals of each field lie beyond rounding.

    Raises:
        UhkdError: naming all shards and records that are not what they should be.
    """
    stored = TeacherCache(arguments.cache)
    bad: list[CorruptShard] = []
    checked = 0
    for view in range(stored.manifest.views):
        for shard in stored.shards.of_view(view):
            try:
                stored.shards.check(shard)
                checked += shard.stop - shard.start
            except CorruptShard as error:
                bad.append(error)
                log_info(f"  {str(error).split('; make')[0]}")
    (log_info if bad or arguments.sample else print_result)(
        f"{checked:,} records read, each is what was written"
        if not bad
        else f"shards that are damaged or missing: {len(bad)}"
    )
    if bad:
        raise UhkdError(
            f"shards of {stored.folder} that are damaged or missing: {len(bad)} (named above); make them anew, and them "
            f"alone, with: uhkd cache -c {stored.folder} --out {stored.folder}"
        )
    beyond = _compare_sample(stored, arguments) if arguments.sample else {}
    return {"records": checked, "sample": arguments.sample, "beyond_rounding": beyond}


def _compare_sample(stored: TeacherCache, arguments: VerifyArguments) -> dict[str, float]:
    manifest = stored.manifest
    options = load_yaml(RunFolder(stored.folder).recipe) | {"out": str(stored.folder), "device": arguments.device}
    options |= {k: v for k, v in (("data", arguments.data), ("teacher", arguments.teacher)) if v is not None}
    recipe = build(CacheRecipe, options)
    device, precision = choose_device(recipe)
    fabric = make_fabric(device, precision)
    data = open_recipe_data(recipe)
    if stored.differences({"data": data.fingerprint}):
        differing = [data_mismatch(recipe, stored), *stored.differences({"classes": len(data.classes)})]
        raise UhkdError(f"the images are not those of {stored.folder}: " + "; ".join(differing))
    inputs = Inputs(data=data, fabric=fabric, folder=RunFolder(stored.folder), workers=0)
    network, _ = prepare_teacher(recipe, inputs, skip_evaluation=True)
    if differing := stored.differences({"teacher": fingerprint(network)}):
        raise UhkdError(f"the teacher is not that of {stored.folder}: " + "; ".join(differing))
    teacher = Teacher(network, manifest.target, fabric.autocast)
    if teacher.ftm is not None:
        teacher.ftm.load_state_dict(stored.tensors("ftm."))
    places = np.random.default_rng().integers((manifest.views, manifest.images), size=(arguments.sample, 2)).tolist()
    loader = span_loader(
        data.train,
        manifest.augmentation,
        [IndexRange(view, index, index + 1) for view, index in places],
        seed=manifest.seed,
        num_classes=len(data.classes),
    )
    worst: dict[str, float] = {}
    other_views: list[str] = []
    for (view, index), batch in zip(places, loader, strict=True):
        where = np.array([index])
        if image_checksums(batch.image, batch.target)[0] != stored.shards.checksums(view, where)[0]:
            other_views.append(f"image {index} of view {view}")
            continue
        image = batch.image.to(fabric.device).contiguous(memory_format=torch.channels_last)
        live = teacher.signals(batch._replace(image=image), frozenset(manifest.layout.holds))
        recorded = manifest.layout.decode(torch.from_numpy(stored.shards.read(view, where)))
        again = manifest.layout.tolerance(recorded)
        for (name, x, allowed), (_, y, _) in zip(manifest.layout.tolerance(live), again, strict=True):
            beyond = ((x - y).abs() - allowed).clamp_min(0).max() / x.square().mean().sqrt().clamp_min(1e-12)
            worst[name] = max(worst.get(name, 0.0), float(beyond))
    if other_views:
        raise UhkdError(
            f"{len(other_views)} of {arguments.sample} views are not those that the teacher saw ({', '.join(other_views[:3])}): "
            f"files have changed, or a library augments in another way than that of {Path(stored.folder) / 'environment.json'}"
        )
    for name, share in worst.items():
        log_info(
            f"  {name}: beyond the rounding of {manifest.layout.storage} by at most {share:.1e} of the root mean square"
        )
    slack = max(_SLACK[precision], _SLACK.get(str(manifest.environment.get("precision")), 0.0))
    if off := [name for name, share in worst.items() if share > slack]:
        raise UhkdError(
            f"{', '.join(off)} of {arguments.sample} records differ from the teacher's current output by more than {slack:g} of "
            "their root mean square: another precision, a broken library, or a teacher that is not in eval mode"
        )
    print_result(f"{arguments.sample} records made anew: views equal to the bit, signals to rounding")
    return worst
