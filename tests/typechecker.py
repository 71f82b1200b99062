"""beartype as the import hook of the tests uses it: an int is a float; on single methods it cannot know what `Self` is."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))
