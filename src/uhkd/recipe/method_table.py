"""The names of methods: ours, in the order of tables, and those that other packages bring as entry points "uhkd.methods".

No method is imported here, so that a slip in a name is answered without torch.
"""

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from uhkd.errors import UhkdError

GROUP = "uhkd.methods"
METHODS = {  # where each class stands below `uhkd.methods`
    "scratch": "scratch:Scratch",
    "kd": "kd:KD",
    "dkd": "dkd:DKD",
    "dist": "dist:DIST",
    "fitnet": "fitnet:FitNet",
    "at": "at:AT",
    "cc": "cc:CC",
    "rkd": "rkd:RKD",
    "crd": "crd:CRD",
    "ofa": "ofa:OFA",
    "rsd": "rsd:RSD",
    "spectralkd": "spectralkd:SpectralKD",
    "twin_a": "spatial_twins:PooledTwin",
    "twin_b": "spatial_twins:FullGridTwin",
    "uhkd": "uhkd:UHKD",
}


@cache
def entries() -> dict[str, EntryPoint]:
    """Where each method is, by name."""
    ours = {name: EntryPoint(name, f"uhkd.methods.{where}", GROUP) for name, where in METHODS.items()}
    # a plug-in cannot replace a method of ours: a name in a table must mean one thing
    return {point.name: point for point in entry_points(group=GROUP)} | ours


def method_names() -> list[str]:
    """All known methods: ours in the order of the tables, then those of plug-ins."""
    return [*METHODS, *sorted(set(entries()) - set(METHODS))]


def entry_of(name: str) -> EntryPoint:
    """Where a method is.

    Raises:
        UhkdError: for an unknown name.
    """
    if name not in entries():
        near = suggest(name, method_names())
        raise UhkdError(f"unknown method {name!r}{near} (known: {', '.join(method_names())})")
    return entries()[name]


def names_of(method: str) -> list[str]:
    """The names in a list of methods such as "uhkd+dkd".

    Raises:
        UhkdError: with every name that is unknown, or when one comes twice.
    """
    names = [part.strip() for part in method.split("+")]
    problems = []
    for name in names:
        try:
            entry_of(name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UhkdError("\n".join(problems))
    if len(set(names)) < len(names):
        raise UhkdError(f"method {method!r} names one method twice")
    return names


def suggest(name: str, known: list[str]) -> str:
    """'; did you mean ...?' with the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
