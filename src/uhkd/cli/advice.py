"""Advice of the readers of data, which serve several commands: only options that the command has."""

import re

from uhkd.cli.parser import SCHEMAS, flag
from uhkd.recipe import CompareRecipe, DataOptions

_COMPARE = "; in compare, set options of a training by --overrides NAME=VALUE, or in the recipe of the pair"


def fit_advice(message: str, command: str) -> str:
    """Return an error message without alternatives by an option on data that the command lacks; compare: how to set it."""
    schema = SCHEMAS[command]
    for option in map(flag, DataOptions.model_fields.keys() - schema.model_fields.keys()):
        end = rf"{option}(?![\w-])"
        if schema is CompareRecipe and re.search(end, message):
            return message + _COMPARE
        message = re.sub(rf",? or [^,;:()\n]*{end}[^,;:()\n]*| \([^()\n]*{end}[^()\n]*\)", "", message)
    return message
