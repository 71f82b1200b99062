"""What people do wrong, and the whole answer: tried by tests/cli/test_errors.py, written down in docs/errors.md."""

from references.errors import (
    arrays,
    caches,
    comparisons,
    exports,
    flags,
    folders,
    images,
    models,
    objects,
    own_data,
    questions,
    recipes,
    runs,
    shards,
    tables,
    teachers,
    watching,
)
from references.errors.case import Case

AREAS: dict[str, tuple[Case, ...]] = {
    "Image files": images.CASES,
    "Image folders": folders.CASES,
    "Tar shards": shards.CASES,
    "Arrays and data sets of your own": arrays.CASES,
    "Tables": tables.CASES,
    "Recipes": recipes.CASES,
    "The command line": flags.CASES,
    "Unequal classes, frozen layers, best epoch, Apple's GPU": own_data.CASES,
    "Networks and weights": models.CASES + objects.CASES,
    "Teachers of your own": teachers.CASES,
    "Run folders and checkpoints": runs.CASES,
    "Stored teacher outputs": caches.CASES,
    "Comparisons": comparisons.CASES,
    "eval, predict, report, inspect": questions.CASES,
    "watch and loggers": watching.CASES,
    "export, push": exports.CASES,
}
