"""Columns of images and labels: in tables, in Hugging Face data sets, and in data sets whose items are dicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uhkd.console import listed
from uhkd.errors import UhkdError

_USUAL = {
    "image": "image images img path image_path img_path file filename file_name file_path filepath image_id image_name "
    "image_file photo picture pixel_values",
    "label": "label labels class class_name class_id class_label category category_name target targets y species",
}


@dataclass(frozen=True)
class Columns:
    """Data and the names of its columns; None: found by their usual names or their types."""

    data: Any
    image: str | None = None
    label: str | None = None

    def find(
        self, kind: str, names: Sequence[str], title: str, typed: Sequence[str], needed: bool = True
    ) -> str | None:
        """Return the column of the images or labels among `names`; None without one if it is not needed.

        Args:
            kind: "image" or "label".
            names: all columns.
            title: name of the data in messages.
            typed: the columns whose type or content is that of images or labels.
            needed: whether a column must be found.

        Raises:
            UhkdError: no such column, or several; the message lists the columns.
        """
        given = self.image if kind == "image" else self.label
        usual = [name for name in names if name.strip().lower().replace(" ", "_") in _USUAL[kind].split()]
        orders = [typed, usual] if kind == "image" else [usual, typed]
        candidates = [[given] if given in names else []] if given else [[n for n in usual if n in typed], *orders]
        found = next((group[0] for group in candidates if len(group) == 1), None)
        if found is None and (given or needed):
            several = [*dict.fromkeys([*typed, *usual])]
            why = f"no column {given}" if given else f"several columns that may hold the {kind}s ({listed(several)})"
            why = why if given or several else f"no column that is known to hold the {kind}s"
            without = ", or ignore the labels with --unlabelled" if kind == "label" and not given else ""
            raise UhkdError(
                f"{title} has {why}: name one with --{kind}-column{without}; its columns: {', '.join(names) or 'none'}"
            )
        return found


class Rows:
    """A data set of dicts as (image, label) pairs, or as images alone if `label` is None."""

    def __init__(self, dataset: Any, image: str, label: str | None) -> None:
        self.dataset, self.image, self.label = dataset, image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        row = self.dataset[index]
        return row[self.image] if self.label is None else (row[self.image], row[self.label])


def by_columns(columns: Columns, first: Mapping[str, Any], title: str, labels: bool) -> tuple[Rows, list[str]]:
    """Return a data set of dicts as pairs, and a note that names the columns.

    Args:
        columns: a data set whose items are dicts; one of Hugging Face has its features in `features`.
        first: its first item.
        title: its name in messages.
        labels: whether labels are needed.

    Raises:
        UhkdError: columns that cannot be found.
    """
    dataset, features = columns.data, getattr(columns.data, "features", None)
    if features is not None:
        image, label = feature_columns(columns, features, title, labels)
        import datasets

        # without the user's format or transform: uhkd augments the images
        rows = Rows(dataset.with_format(None).cast_column(image, datasets.Image()), image, label)
        if label is not None:
            rows.targets, rows.classes = rows.dataset[label][:], getattr(features[label], "names", None)
    else:
        images = [name for name, value in first.items() if np.ndim(value) >= 2 or hasattr(value, "getbands")]
        names = [str(name) for name in first]
        image = columns.find("image", names, title, images)
        assert image is not None
        rows = Rows(dataset, image, columns.find("label", names, title, [], labels))
    return rows, [f"{title}: images from column {rows.image}, labels from {rows.label or 'none'}"]


def feature_columns(columns: Columns, features: Mapping[str, Any], title: str, labels: bool) -> tuple[str, str | None]:
    """Return the columns of images and labels by the features of a Hugging Face data set.

    Raises:
        UhkdError: columns that cannot be found.
    """
    types = {name: type(feature).__name__ for name, feature in features.items()}
    image = columns.find("image", [*types], title, [name for name, kind in types.items() if kind == "Image"])
    assert image is not None
    classes = [name for name, kind in types.items() if kind == "ClassLabel"]
    return image, columns.find("label", [*types], title, classes, labels)
