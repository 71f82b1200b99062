"""beartype as the tests' import hook uses it: on single methods, where it cannot know what `Self` stands for."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any})))
