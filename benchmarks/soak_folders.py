"""Differences between the folder of a disturbed command and that of the same command undisturbed."""

from pathlib import Path

import numpy as np

from uhkd.runs import RunFolder

TIMES = {"seconds", "images_per_second", "data_wait"}


def differences(one: Path, two: Path, exact: bool = True) -> list[str]:
    """Return how two folders differ; times, places and pictures apart. exact: compare contents, not only names of files."""
    names = [{str(f.relative_to(p)) for f in p.rglob("*") if f.is_file()} for p in (one, two)]
    found = [f"{name} is in one of them alone" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]) if exact else []:
        a, b = one / name, two / name
        if a.suffix in (".bin", ".safetensors"):
            same = a.read_bytes() == b.read_bytes()
        elif a.name == "metrics.csv":
            rows = [
                [{k: v for k, v in row.items() if k not in TIMES} for row in RunFolder(x.parent).read_metrics()]
                for x in (a, b)
            ]
            same = rows[0] == rows[1]
        elif a.name == "diagnostics.npz":
            arrays = [RunFolder(x.parent).read_arrays() for x in (a, b)]
            same = arrays[0].keys() == arrays[1].keys() and all(
                np.array_equal(v, arrays[1][k]) for k, v in arrays[0].items() if not k.endswith("latency_ms")
            )
        else:
            continue
        if not same:
            found.append(f"{name} differs")
    return found
