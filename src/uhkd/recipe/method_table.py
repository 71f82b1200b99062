"""Names of methods: those of this package, in the order of tables, and plug-ins (entry points of group "uhkd.methods").

No method is imported here, so that a wrong name is reported without importing torch.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from uhkd.errors import UhkdError
from uhkd.recipe.errors import did_you_mean

GROUP = "uhkd.methods"
METHODS = {  # name -> class below `uhkd.methods`
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
    """Return the entry point of each method by name."""
    packaged = {name: EntryPoint(name, f"uhkd.methods.{path}", GROUP) for name, path in METHODS.items()}
    # a plug-in cannot replace a packaged method: a name in a table must have one meaning
    return {point.name: point for point in entry_points(group=GROUP)} | packaged


def method_names() -> list[str]:
    """Return all method names: the packaged ones in the order of tables, then plug-ins."""
    return [*METHODS, *sorted(set(entries()) - set(METHODS))]


def entry_of(name: str) -> EntryPoint:
    """Return the entry point of a method.

    Raises:
        UhkdError: for an unknown name.
    """
    if name not in entries():
        names = method_names()
        raise UhkdError(f"unknown method {name!r}{did_you_mean(name, names, 1)} (known: {', '.join(names)})")
    return entries()[name]


def names_of(method: str) -> list[str]:
    """Return the names in a combination of methods such as "uhkd+dkd".

    Raises:
        UhkdError: for unknown names (all of them) or a repeated name.
    """
    names = [part.strip() for part in method.split("+")]
    problems = []
    for name in names:
        try:
            entry_of(name)
        except UhkdError as error:
            problems.append(str(error))
    if problems:
        raise UhkdError("\n".join(problems))
    if len(set(names)) < len(names):
        raise UhkdError(f"method {method!r} contains a name twice")
    return names
