"""Whether a checkpoint is of the training that wants to go on from it: right checksums say only that it is as it was written."""

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
    """facts.json, as `train` writes it."""

    model_config = ConfigDict(strict=True)

    step: _Count
    data: str
    cache: str | None = None
    rows: list[dict[str, int | float]]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    totals: Annotated[list[dict[str, int | float]], Field(min_length=1)]
    skipped: list[_Count]


def check_facts(checkpoint: Checkpoint, total: int, terms: Collection[str]) -> None:
    """See that the plain facts are a training's of `total` steps with these loss terms.

    Raises:
        UhkdError: naming the first that is not.
    """
    try:
        facts = _Facts.model_validate(checkpoint.facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UhkdError(f"facts.json: {where}: {first['msg'].lower()}, found {str(first['input'])[:40]}") from None
    if facts.step != checkpoint.step or checkpoint.step > total:
        raise UhkdError(
            f"facts.json: step: expected {checkpoint.step} as in its name, and at most {total}, found {str(facts.step)[:40]}"
        )
    for sums in facts.totals:
        if strange := sums.keys() - {"count", "loss", *terms}:
            raise UhkdError(f"facts.json: totals: expected {', '.join(terms)}, found {', '.join(sorted(strange))[:80]}")
        if sums.get("count", -1) not in range(len(sums) > 1, 2**53):
            raise UhkdError(f"facts.json: totals: expected a count of passes, found {str(sums.get('count'))[:40]}")


def check_sources(checkpoint: Checkpoint, sources: Mapping[str, str | None], name: str, folder: Path) -> None:
    """See that a training goes on with the "data" (`name`) and the "cache" of teacher signals that it began with.

    Raises:
        UhkdError: saying which are others.
    """
    if checkpoint.facts["data"] != sources["data"]:
        raise UhkdError(
            f"cannot resume {folder}: the images or labels of {name} are not those that it began with; "
            "put them back, or start a new run with another --out"
        )
    if checkpoint.facts.get("cache") != sources["cache"]:
        raise UhkdError(
            f"cannot resume {folder}: it began with {'other' if sources['cache'] else 'the'} stored signals of its teacher; "
            "give the same --teacher-cache, or start a new run with another --out"
        )


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], extra: Collection[str]) -> None:
    """See that tensors have the names, shapes and types of the expected ones, of any shape; those named in `finite` are finite.

    Raises:
        UhkdError: naming the first that has not.
    """
    if differing := sorted(found.keys() ^ expected.keys()):
        without = "lacks" if differing[0] in expected else "holds, beside what it should,"
        raise UhkdError(
            f"it {without} {differing[0]}{_more(differing)}: the state of another network or method, or a damaged one"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise UhkdError(f"{name}: expected {_form(tensor)}, found {_form(found[name])}")
    if bad := [name for name in extra if not found[name].isfinite().all()]:
        raise UhkdError(f"{bad[0]}{_more(bad)} holds numbers that are not finite")


def fitting_optimizer(
    saved: Mapping[str, Any], fresh: Mapping[str, Any], sizes: Mapping[int, torch.Size], recipe: TrainRecipe, total: int
) -> dict[str, Any]:
    """The saved state of an optimizer, ready to be loaded into the one whose untouched state is `fresh`.

    sizes: shape of each weight by its number in the state. Settings are the fresh one's, as the recipe sets them; from a
    saved state come what the optimizer notes of each weight, and what it counts.

    Raises:
        UhkdError: naming the first thing that another optimizer, or other weights, would have left there.
    """
    groups, state = saved.get("param_groups"), saved.get("state")
    own = fresh["param_groups"]
    if not isinstance(groups, list) or not isinstance(state, dict) or len(groups) != len(own):
        raise UhkdError(f"optimizer.pt: expected {len(own)} groups of weights and a state, found others")
    stepped = _stepped(recipe)
    checked = []
    for group, current in zip(groups, own, strict=True):
        for name, value in current.items():
            # one that another version of a library did not know is settled already
            if name != "lr" and not _same(group.get(name, value), value):
                raise UhkdError(f"optimizer.pt: {name}: expected {value}, found {str(group[name])[:40]}")
        counted = {name: group.get(name) for name in stepped["param_groups"][0].keys() - current.keys()}
        for name, value in counted.items():
            _check_count(f"optimizer.pt: {name}", value, total)
        checked.append({**current, **counted})
    (kinds,) = stepped["state"].values() or ({},)
    if kinds and not state:
        raise UhkdError("optimizer.pt: the state of every weight is missing")
    for number, noted in state.items():
        if number not in sizes or not isinstance(noted, dict) or noted.keys() != kinds.keys():
            raise UhkdError(
                f"optimizer.pt: expected {', '.join(kinds) or 'nothing'} of {len(sizes)} weights, found {str(noted)[:40]} of "
                f"weight {str(number)[:20]}: another optimizer's state?"
            )
        for name, kind in kinds.items():
            value, where = noted[name], f"optimizer.pt: {name} of weight {number}"
            if not isinstance(kind, Tensor):
                if value is not None or kind is not None:
                    raise UhkdError(f"{where}: expected nothing, found {str(value)[:40]}")
            elif kind.ndim == 0:
                _check_count(where, value, total)
            elif not isinstance(value, Tensor) or value.shape != sizes[number] or not value.is_floating_point():
                raise UhkdError(f"{where}: expected numbers of shape {tuple(sizes[number])}, found {_form(value)}")
            elif not value.isfinite().all():
                raise UhkdError(f"{where} holds numbers that are not finite")
    return {"state": state, "param_groups": checked}


def _stepped(recipe: TrainRecipe) -> dict[str, Any]:
    """The state of the recipe's optimizer after a step of one weight: what it notes, and under which names."""
    weight = nn.ParameterList([torch.ones(2, 2)])
    optimizer = make_optimizer(weight, recipe)
    weight[0].grad = torch.ones(2, 2)
    optimizer.step()
    return optimizer.state_dict()


def _check_count(where: str, value: Any, total: int) -> None:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= total:
        raise UhkdError(f"{where}: expected a number of steps up to {total}, found {str(value)[:40]}")


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple | list):
        return isinstance(found, tuple | list) and list(found) == list(expected)
    return type(found) is type(expected) and found == expected


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"no tensor but {str(value)[:40]}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
