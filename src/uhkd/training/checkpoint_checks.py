"""Checks that a checkpoint belongs to the training that resumes from it; checksums only detect damaged files."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.recipe import TrainRecipe
from uhkd.runs import Checkpoint
from uhkd.training.optimizer import make_optimizer

_Count = Annotated[int, Field(ge=0)]


class _Facts(BaseModel):
    """Content of facts.json; `totals` has one entry per process."""

    model_config = ConfigDict(strict=True)

    step: _Count
    data: str
    cache: str | None = None
    rows: list[dict[str, int | float]]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    totals: Annotated[list[dict[str, int | float]], Field(min_length=1)]
    skipped: list[_Count]


def check_facts(checkpoint: Checkpoint, total: int, terms: Collection[str]) -> None:
    """Check that the facts of a checkpoint are those of a training of `total` steps with these loss terms.

    Raises:
        UhkdError: if they are not, with the first wrong field.
    """
    try:
        facts = _Facts.model_validate(checkpoint.facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UhkdError(f"facts.json: {where}: {first['msg'].lower()}, found {_short(first['input'])}") from None
    if facts.step != checkpoint.step or checkpoint.step > total:
        raise UhkdError(
            f"facts.json: step: expected {checkpoint.step} as in its name, and at most {total}, found {_short(facts.step)}"
        )
    for sums in facts.totals:
        if unknown := sums.keys() - {"count", "loss", *terms}:
            raise UhkdError(f"facts.json: totals: expected {', '.join(terms)}, found {', '.join(sorted(unknown))[:80]}")
        if sums.get("count", -1) not in range(len(sums) > 1, 2**53):
            raise UhkdError(f"facts.json: totals: expected a count of passes, found {_short(sums.get('count'))}")


def check_sources(checkpoint: Checkpoint, sources: Mapping[str, str | None], name: str, folder: Path) -> None:
    """Check that a training resumes with the same data and the same cache of teacher outputs.

    sources: current fingerprints, "data" and "cache". name: of the data. folder: the run folder.

    Raises:
        UhkdError: if data or cache differ.
    """
    if checkpoint.facts["data"] != sources["data"]:
        raise UhkdError(
            f"cannot resume {folder}: the images or labels of {name} have changed since it was started; "
            "restore them, or start a new run with another --out"
        )
    if checkpoint.facts.get("cache") != sources["cache"]:
        raise UhkdError(
            f"cannot resume {folder}: it was started with {'another' if sources['cache'] else 'a'} cache of teacher outputs; "
            "give the same --teacher-cache, or start a new run with another --out"
        )


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], finite: Collection[str]) -> None:
    """Check that tensors, of any shape, have the names, shapes and dtypes of the expected ones; those in `finite` must be finite.

    Raises:
        UhkdError: if they do not, with the first wrong name.
    """
    if differing := sorted(tensors.keys() ^ expected.keys()):
        problem = "lacks" if differing[0] in expected else "has unexpected"
        raise UhkdError(
            f"it {problem} {differing[0]}{_more(differing)}: it is of another network or method, or damaged"
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise UhkdError(f"{name}: expected {_describe(tensor)}, found {_describe(tensors[name])}")
    if bad := [name for name in finite if not tensors[name].isfinite().all()]:
        raise UhkdError(f"{bad[0]}{_more(bad)} holds numbers that are not finite")


def check_optimizer(
    saved: Mapping[str, Any],
    initial: Mapping[str, Any],
    shapes: Mapping[int, torch.Size],
    recipe: TrainRecipe,
    total: int,
) -> dict[str, Any]:
    """Check a saved optimizer state and return the state to load.

    Settings of the result are those of `initial`, as set by the recipe; moments and counters are the saved ones.

    Args:
        saved: state of the checkpoint.
        initial: state of the current optimizer before its first step.
        shapes: shape of each weight by its number in the state.
        recipe: of the training.
        total: steps of the whole training; no counter may be larger.

    Raises:
        UhkdError: if the state is of another optimizer or of other weights, with the first difference.
    """
    groups, state = saved.get("param_groups"), saved.get("state")
    expected_groups = initial["param_groups"]
    if not isinstance(groups, list) or not isinstance(state, dict) or len(groups) != len(expected_groups):
        raise UhkdError(f"optimizer.pt: expected {len(expected_groups)} groups of weights and a state, found others")
    stepped = _state_after_step(recipe)
    checked = []
    for group, expected in zip(groups, expected_groups, strict=True):
        for name, value in expected.items():
            # a setting that an older version of a library did not have is missing and keeps its current value
            if name != "lr" and not _equal(group.get(name, value), value):
                raise UhkdError(f"optimizer.pt: {name}: expected {value}, found {_short(group[name])}")
        counters = {name: group.get(name) for name in stepped["param_groups"][0].keys() - expected.keys()}
        for name, value in counters.items():
            _check_count(f"optimizer.pt: {name}", value, total)
        checked.append({**expected, **counters})
    (fields,) = stepped["state"].values() or ({},)
    if fields and not state:
        raise UhkdError("optimizer.pt: the state of every weight is missing")
    for number, values in state.items():
        if number not in shapes or not isinstance(values, dict) or values.keys() != fields.keys():
            raise UhkdError(
                f"optimizer.pt: expected {', '.join(fields) or 'nothing'} of {len(shapes)} weights, found {_short(values)} of "
                f"weight {str(number)[:20]}: another optimizer's state?"
            )
        for name, example in fields.items():
            _check_value(f"optimizer.pt: {name} of weight {number}", values[name], example, shapes[number], total)
    return {"state": state, "param_groups": checked}


def _state_after_step(recipe: TrainRecipe) -> dict[str, Any]:
    """Return the state of the recipe's optimizer after one step of one weight, as an example of its fields."""
    weights = nn.ParameterList([torch.ones(2, 2)])
    optimizer = make_optimizer(weights, recipe)
    weights[0].grad = torch.ones(2, 2)
    optimizer.step()
    return optimizer.state_dict()


def _check_value(where: str, value: Any, example: Any, shape: torch.Size, total: int) -> None:
    if not isinstance(example, Tensor):
        if value is not None or example is not None:
            raise UhkdError(f"{where}: expected nothing, found {_short(value)}")
    elif example.ndim == 0:
        _check_count(where, value, total)
    elif not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        raise UhkdError(f"{where}: expected numbers of shape {tuple(shape)}, found {_describe(value)}")
    elif not value.isfinite().all():
        raise UhkdError(f"{where} holds numbers that are not finite")


def _check_count(where: str, value: Any, total: int) -> None:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= total:
        raise UhkdError(f"{where}: expected a number of steps up to {total}, found {_short(value)}")


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, tuple | list):
        return isinstance(value, tuple | list) and list(value) == list(expected)
    return type(value) is type(expected) and value == expected


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"no tensor but {_short(value)}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _short(value: Any) -> str:
    return str(value)[:40]


def _more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
