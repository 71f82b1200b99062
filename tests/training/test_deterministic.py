"""Repeating to the bit: on a GPU by torch's own switch (measured by benchmarks/deterministic.py); here what a CPU can show."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from uhkd.methods.feature_pairs import pooled
from uhkd.training.deterministic import deterministic_advice, make_deterministic


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("deterministic")
def test_an_operation_that_cannot_repeat_is_named():
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    largest, where = F.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    with (
        pytest.raises(
            ValueError, match=r"^deterministic: max_unpooling2d\w* is not deterministic .* leave out --deterministic"
        ),
        deterministic_advice(),
    ):
        F.max_unpool2d(largest, where, 2)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), deterministic_advice():
        raise RuntimeError("another")


@pytest.mark.parametrize("size", [(2, 2), (4, 1), (3, 2), (8, 6)])
def test_pooling_by_whole_cells_is_that_by_any(size: tuple[int, int]):
    x = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(x, size), F.adaptive_avg_pool2d(x, size))
