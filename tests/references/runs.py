"""When two runs are the same run, and checkpoints that were changed on purpose."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from uhkd.runs import RunFolder

TIMES = {"seconds", "images_per_second", "data_wait"}


def assert_equal_runs(one: RunFolder, two: RunFolder, steps: list[int]) -> None:
    """Weights, last checkpoint, rows (of the given steps: none twice, none missing), diagnostics and result, to the bit."""
    assert one.weights.read_bytes() == two.weights.read_bytes()
    a, b = one.read_checkpoint(), two.read_checkpoint()
    assert a is not None and b is not None and a.step == b.step == steps[-1]
    assert a.tensors.keys() == b.tensors.keys()
    assert [k for k, v in a.tensors.items() if not torch.equal(v, b.tensors[k])] == []
    assert a.optimizer["param_groups"] == b.optimizer["param_groups"]
    assert a.optimizer["state"].keys() == b.optimizer["state"].keys() != set()
    for key, state in a.optimizer["state"].items():
        assert all(torch.equal(v, b.optimizer["state"][key][k]) for k, v in state.items())
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.read_metrics()] for run in (one, two)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == steps
    arrays, others = one.read_arrays(), two.read_arrays()
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name, strict=True)
    results = [run.read_result() for run in (one, two)]
    for result in results:
        result.pop("teacher", None)  # may lie elsewhere
        del result["environment"]
        result["metrics"] = {k: v for k, v in result["metrics"].items() if k not in TIMES}
    assert results[0] == results[1]


def seal(folder: Path) -> None:
    """Checksums of a checkpoint anew, as whoever changed a file on purpose would write them."""
    names = ("tensors.safetensors", "optimizer.pt", "facts.json")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))
