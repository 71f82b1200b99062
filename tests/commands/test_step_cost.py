"""What a training step must not do: break a compiled graph, wait for the device, keep the teacher's maps."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import uhkd
from references import steps
from references.steps import CASES, assemble
from uhkd.spectral import project
from uhkd.training.learner import weighted_sum
from uhkd.training.running_metrics import RunningMetrics

every_method = pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else str(x))


@pytest.mark.slow
def test_every_method_compiles_without_a_break_in_its_graph():
    """In a process of its own: the shape checks of the tests, which no user has, cannot be compiled."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (Path(uhkd.__file__).parents[1], Path(__file__).parents[1]))),
    }
    done = subprocess.run(
        [sys.executable, steps.__file__], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


class NeverWaits(TorchDispatchMode):
    """Refuses the operators whose result the host must see before it can go on: a GPU would be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        copied = name == "_to_copy" and args[0].device != (kwargs or {}).get("device", args[0].device)
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in self.WAITING or copied or masked:
            raise AssertionError(f"the step waits for the device: {func}")
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_makes_the_host_wait():
    x = torch.ones(3)
    for waits in (lambda: x.sum().item(), lambda: x[x > 0], lambda: bool(x.isfinite().all()), lambda: x.unique()):
        with NeverWaits(), pytest.raises(AssertionError, match="waits for the device"):
            waits()


@every_method
def test_a_step_never_waits_for_the_device(method, settings):
    learner, teacher, batch = assemble(method, settings)
    totals, weights = RunningMetrics(torch.device("cpu")), learner.weights()

    def step() -> None:
        said = teacher.outputs(batch, learner.teacher_needs)
        terms = learner(batch, said)
        loss = weighted_sum(terms, weights)
        loss.backward()
        totals.add(loss.detach(), terms)
        for side in (learner.student, learner.distillers):
            nn.utils.clip_grad_norm_(list(side.parameters()), 1.0)

    step()  # whether the FTM is calibrated is asked at the first step
    with NeverWaits():
        step()


@every_method
def test_the_teachers_maps_are_gone_before_the_student_begins(method, settings):
    learner, teacher, batch = assemble(method, settings)
    maps: list[weakref.ref] = []

    def note(image, want):
        signals = type(teacher.network).forward(teacher.network, image, want)
        maps.extend(weakref.ref(x) for x in signals.maps or ())
        return signals

    teacher.network.forward = note
    gc.disable()  # gone by themselves, not at some collection
    try:
        said = teacher.outputs(batch, learner.teacher_needs)
        left = [x for x in maps if x() is not None]
    finally:
        gc.enable()
    assert len(left) == len(said.maps or ())
    assert ("maps" in learner.teacher_needs) == bool(left)
    assert bool(maps) == bool(learner.teacher_needs & {"maps", "spectra"})


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["channels last", "channels first", "tokens after a prefix"])
def test_a_map_of_any_memory_order_gives_the_same_numbers_and_a_gradient_for_the_mixing_order(order, dtype, radius):
    x = torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    if order == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif order == "tokens after a prefix":
        tokens = torch.cat((torch.zeros(3, 1, 6, dtype=dtype), x.flatten(2).mT), 1)
        x = tokens[:, 1:].mT.unflatten(2, (9, 8))
    rows, cols = (torch.randn(2 * radius + 1, n, generator=torch.Generator().manual_seed(n)) for n in (9, 8))
    leaf = x.detach().requires_grad_()
    found = project(leaf, rows, cols)
    expected = torch.einsum("uh,bchw,vw->bcuv", rows.double(), x.double(), cols.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # bf16 maps too: their numbers are exact
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((found * weights).sum(), leaf)
    expected = torch.einsum("uh,bcuv,vw->bchw", rows.double(), weights.double(), cols.double())
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=1e-4)
