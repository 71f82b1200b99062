"""Stored signals of a teacher."""

import json
from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import CACHE, CACHED, DIGITS, write

TRAIN = f"{CACHED} {DIGITS}"
STORE = f"{CACHE} {DIGITS} --out cache"
HAS = {"has": ("cache",)}
BOTH = {"has": ("cache", "teacher")}
SHARD = "cache/view-0001/shard-00000.bin"


def flip(name: str, place: int) -> None:
    """Change a bit of a file."""
    content = bytearray(Path(name).read_bytes())
    content[place] ^= 4
    Path(name).write_bytes(content)


def manifest(**changes: object) -> None:
    """Another cache.json, without a new checksum."""
    said = json.loads(Path("cache/cache.json").read_text())
    write("cache/cache.json", json.dumps(said | changes))


CASES = (
    Case(
        "a cache that does not exist",
        TRAIN,
        "cache is not a cache (no cache.json); create one with: uhkd cache --out cache",
    ),
    Case(
        "a cache with a misspelt name",
        "cache verify cahce",
        "cahce is not a cache (no cache.json); did you mean cache?",
        **HAS,
    ),
    Case(
        "other images",
        f"{CACHED} --data digits --train-limit 30",
        "the cache cache does not match this training; use its options (see cache/recipe.yaml), or create "
        "another (uhkd cache):\n"
        "  data: other images or labels than the cache's, train_limit was 40, is 30\n"
        "  images: the cache has 40, the data 30",
        **HAS,
    ),
    Case(
        "other views",
        f"{TRAIN} --mixup 0.3 --crop none",
        "the cache cache does not match this training; use its options (see cache/recipe.yaml), or create "
        "another (uhkd cache):\n"
        "  view crop: the cache has 'pad', expected 'none'\n"
        "  view mixup: the cache has 0.0, expected 0.3",
        **HAS,
    ),
    Case(
        "more views than the cache has",
        f"{TRAIN} --teacher-views 3",
        "teacher_views: expected at most 2, which cache holds, found 3",
        **HAS,
    ),
    Case(
        "another teacher",
        f"{TRAIN} --teacher timm/resnet18",
        "the cache cache does not match this training; use its options (see cache/recipe.yaml), or create "
        "another (uhkd cache):\n"
        "  teacher: the cache is of teacher, the recipe has timm/resnet18",
        **HAS,
    ),
    Case(
        "the run folder of another teacher",
        f"{TRAIN} --teacher run",
        "the cache cache does not match this training; use its options (see cache/recipe.yaml), or create "
        "another (uhkd cache):\n"
        "  teacher: the weights in run are not those of the teacher that was stored",
        has=("cache", "run"),
    ),
    Case(
        "a teacher with damaged weights",
        f"{TRAIN} --teacher teacher",
        "'teacher/model.safetensors' differs from its checksum in SHA256SUMS, so it is damaged or was changed; write, copy or "
        "download it again, or delete its line there if the change was meant",
        **BOTH,
        make=lambda: write("teacher/model.safetensors", "hello"),
    ),
    Case(
        "a method that reads outputs that no cache stores",
        f"{TRAIN} --method fitnet",
        "fitnet needs teacher maps; the cache cache holds logits, embedding, spectra: leave out "
        "--teacher-cache, or choose another method",
        **HAS,
    ),
    Case(
        "spectra with another radius",
        f"{TRAIN} --settings radius=3",
        "the method needs other spectra than cache holds: radius 3, stored 1 (levels 1 and 2); give the "
        "method the settings of the cache (--settings), or create another cache with those of the method",
        **HAS,
    ),
    Case(
        "spectra with other settings",
        f"{TRAIN} --settings form=amplitude",
        "the method needs other spectra than cache holds: channels None, stored 64; form amplitude, stored"
        " pairs; give the method the settings of the cache (--settings), or create another cache with those of the "
        "method",
        **HAS,
    ),
    Case(
        "layers too small for spectra",
        f"{TRAIN} --student-levels 0",
        "feature maps are too small for spectra: at least two matched levels need grids of 3x3 or more, found"
        " (4, 4) with (2, 2); use larger images, a smaller patch size, or name shallower layers "
        "(student_levels, teacher_levels)",
        **HAS,
    ),
    Case(
        "too many views",
        f"{CACHE} {DIGITS} --views 1000000000000 --out new",
        "views: expected a value <= 100000, found '1000000000000'",
        has=("teacher",),
    ),
    Case(
        "a shard that is missing",
        f"{TRAIN} --epochs 2",
        "cache/view-0001/shard-00000.bin is missing; rewrite only this shard with: uhkd cache -c cache --out cache",
        **HAS,
        make=lambda: Path(SHARD).unlink(),
    ),
    Case(
        "a shard that was cut short",
        f"{TRAIN} --epochs 2",
        "cache/view-0001/shard-00000.bin is damaged: expected … bytes, found …; rewrite only this shard "
        "with: uhkd cache -c cache --out cache",
        **HAS,
        make=lambda: write(SHARD, Path(SHARD).read_bytes()[:-9]),
    ),
    Case(
        "a record with a changed bit",
        f"{TRAIN} --epochs 2",
        "cache/view-0001/shard-00000.bin is damaged: the checksum of record … (image … of view 1) differs; "
        "rewrite only this shard with: uhkd cache -c cache --out cache",
        **HAS,
        make=lambda: [flip(SHARD, i) for i in range(9, Path(SHARD).stat().st_size, 99)],
    ),
    Case(
        "verifying a cache with a damaged shard",
        "cache verify cache --sample 0",
        "shards of cache that are damaged or missing: 1 (named above); rewrite only these with: "
        "uhkd cache -c cache --out cache",
        **HAS,
        make=lambda: flip(SHARD, 99),
    ),
    Case(
        "verifying a folder that is not a cache",
        "cache verify images",
        "images is not a cache (no cache.json); create one with: uhkd cache --out images",
        has=("images",),
    ),
    Case(
        "verifying a cache whose teacher is missing",
        "cache verify cache --device cpu",
        "teacher: unknown model 'teacher': no model has a similar name (`uhkd models` lists all; a run folder or "
        "local-dir:PATH also works)",
        **HAS,
    ),
    Case(
        "verifying a cache with another teacher",
        "cache verify cache --device cpu --teacher run",
        "the teacher differs from that of cache: teacher: the cache has '…', expected '…'",
        has=("cache", "run"),
    ),
    Case(
        "a damaged cache.json",
        TRAIN,
        "cache/cache.json is damaged (…); create the cache again in a new folder",
        **HAS,
        make=lambda: write("cache/cache.json", "{"),
    ),
    Case(
        "a cache.json that was edited",
        TRAIN,
        "cache/cache.json is damaged (its checksum differs); create the cache again in a new folder",
        **HAS,
        make=lambda: manifest(views=30),
    ),
    Case(
        "a cache of another version",
        TRAIN,
        "cache/cache.json is of format 1, this version reads 2; create the cache again in a new folder, or use the "
        "version of uhkd that wrote it",
        **HAS,
        make=lambda: manifest(format=1),
    ),
    Case(
        "a damaged teacher.safetensors",
        TRAIN,
        "cache/teacher.safetensors is missing or damaged (its checksum differs); create the cache again in a new folder",
        **HAS,
        make=lambda: write("cache/teacher.safetensors", "hello"),
    ),
    Case(
        "a cache in a folder with other files",
        f"{CACHE} {DIGITS} --out images",
        "images already exists and is not a cache; choose another --out",
        has=("images", "teacher"),
    ),
    Case(
        "a cache below a file",
        f"{CACHE} {DIGITS} --out notes/new",
        "notes is a file: expected a folder; choose another --out",
        has=("teacher",),
        make=lambda: write("notes", "hello"),
    ),
    Case(
        "a cache in a run folder",
        f"{CACHE} {DIGITS} --out teacher",
        "teacher already exists and is not a cache; choose another --out",
        has=("teacher",),
    ),
    Case(
        "resuming a cache with other options",
        f"{STORE} --seed 3 --mixup 0.2",
        "cache is a cache of another recipe; choose another --out, or use its recipe (-c cache):\n"
        "  view mixup: the cache has 0.0, expected 0.2\n"
        "  view seed: the cache has 0, expected 3",
        **BOTH,
    ),
)
