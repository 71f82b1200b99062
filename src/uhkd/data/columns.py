"""Columns of images and labels: in tables, in Hugging Face data sets, and in data sets whose items are dicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uhkd.console import listed
from uhkd.data.layout import ImageFolder
from uhkd.errors import UhkdError

_USUAL = {
    "image": "image images img path image_path img_path file filename file_name file_path filepath image_id image_name photo",
    "label": "label labels class class_name class_id classid category category_name target targets species y",
}


@dataclass(frozen=True)
class Columns:
    """Data and the names of its columns; None: found by usual names and types."""

    data: Any
    image: str | None = None
    label: str | None = None

    @classmethod
    def of(cls, recipe: Any, data: Any = None) -> "Columns":
        """Return the data of a recipe or mapping of options, or `data` in its place, with its parts and columns."""
        get = recipe.get if isinstance(recipe, Mapping) else partial(getattr, recipe)
        return cls(ImageFolder.of(recipe, data), get("image_column"), get("label_column"))

    def find(
        self, names: Sequence[str], images: Sequence[str], classes: Sequence[str], labels: bool
    ) -> tuple[str, str | None]:
        """Return the columns of images and labels among `names`.

        Args:
            names: all columns.
            images: those whose type or content is that of images.
            classes: those whose type is that of labels.
            labels: whether labels are needed; without them, the second column may be None.

        Raises:
            UhkdError: no such column, or several; the message lists the columns.
        """
        image = self._find("image", self.image, names, images)
        label = self._find("label", self.label, [name for name in names if name != image], classes, labels)
        assert image is not None
        return image, label

    def _find(
        self, kind: str, given: str | None, names: Sequence[str], typed: Sequence[str], needed: bool = True
    ) -> str | None:
        usual = [name for name in names if name.lower().replace(" ", "_") in _USUAL[kind].split()]
        both = [name for name in usual if name in typed]
        groups = (both, typed, usual) if kind == "image" else (both, usual, typed)
        if given is not None:
            groups = ([name for name in names if name == given],)
        found = next((group[0] for group in groups if len(group) == 1), None)
        if found is None and (needed or given is not None):
            title = self.data if isinstance(self.data, str | Path) else "the data set"
            count = "several" if any(groups) else "no"
            why = f"no column {given}" if given else f"{count} columns with usual names of {kind}s"
            without = ", or ignore the labels with --unlabelled" if kind == "label" and not given else ""
            raise UhkdError(f"{title} has {why}: choose one of {listed(names, 20)} with --{kind}-column{without}")
        return found


class Rows:
    """A data set of dicts as (image, label) pairs, or as images alone if there is no column of labels."""

    def __init__(self, columns: Columns, first: Mapping[str, Any], labels: bool) -> None:
        """first: the first item. labels: whether labels are needed. Raises UhkdError as `Columns.find`."""
        self.dataset, self.unlabelled = columns.data, False
        features = getattr(self.dataset, "features", None)
        if features is None:
            images = [name for name, value in first.items() if np.ndim(value) >= 2 or hasattr(value, "getbands")]
            self.image, self.label = columns.find([*map(str, first)], images, [], labels)
            return
        import datasets

        self.image, self.label = feature_columns(columns, features, labels)
        try:
            # without the user's format or transform: uhkd augments the images
            self.dataset = self.dataset.with_format(None).cast_column(self.image, datasets.Image())
        except Exception as error:  # pyarrow raises several
            raise UhkdError(
                f"column {self.image} has neither images nor paths of images, its type is {features[self.image]}: choose one of "
                f"{listed([*features], 20)} with --image-column"
            ) from error
        if self.label is not None:
            values = self.dataset[self.label][:]
            # the labels of some test splits are not published
            self.unlabelled = all(value is None for value in values)
            self.targets = [-1] * len(values) if self.unlabelled else values
            self.classes = getattr(features[self.label], "names", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        row = self.dataset[index]
        if self.label is None:
            return row[self.image]
        return row[self.image], -1 if self.unlabelled else row[self.label]


def feature_columns(columns: Columns, features: Mapping[str, Any], labels: bool) -> tuple[str, str | None]:
    """Return the columns of images and labels by the features of a Hugging Face data set; raise as `Columns.find`."""
    types = {name: type(feature).__name__ for name, feature in features.items()}
    images, classes = ([name for name in types if types[name] == kind] for kind in ("Image", "ClassLabel"))
    return columns.find([*features], images, classes, labels)


def columns_note(title: object, image: str, label: str | None) -> str:
    """Return the note that names the columns in use."""
    return f"{title}: images from column {image}, labels from {'none' if label is None else label}"
