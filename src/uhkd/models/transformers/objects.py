"""What an object of transformers says of itself: its input, and the words from which it is built again."""

import sys
from pathlib import Path
from typing import Any

from torch import nn

from uhkd.models.factories import Preprocessing
from uhkd.models.families import PREFIX, families, is_hub_name
from uhkd.models.transformers.configuration import config_fields, network_class
from uhkd.models.transformers.folder import PROCESSOR
from uhkd.models.transformers.processor import described_by
from uhkd.runs import read_mapping


def described(module: nn.Module) -> Preprocessing | None:
    """The input of an object of transformers, by the folder or cached hub model it came from; None: another's object."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    origin = str(getattr(module, "name_or_path", "") or "")
    file: Any = Path(origin) / PROCESSOR
    if origin and not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(origin, PROCESSOR) if is_hub_name(origin) else None
    there = isinstance(file, str | Path) and Path(file).is_file() and bool(origin)
    return described_by(module.config, read_mapping(Path(file)) if there else None)


def config_of(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Name and options from which an object of transformers is built again; None: it is another's, or a class of its own."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    config: Any = module.config
    if config.model_type not in families() or type(module) is not network_class(config):
        return None
    return PREFIX + config.model_type, config_fields(config)
