"""The moving average of the weights: its recurrence, what it follows, and the network's own weights coming back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from uhkd.training.ema import ModelEMA


def network() -> nn.Module:
    """Parameters, running statistics of a batch norm, and its counter of batches, which is an integer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def step(net: nn.Module, number: int) -> None:
    """Other weights, and by a forward pass other running statistics."""
    generator = torch.Generator().manual_seed(number)
    net(torch.randn(6, 3, 8, 8, generator=generator) * number + 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, value in found.items() if not torch.equal(value, wanted[name])] == []


@given(decay=st.floats(0.01, 0.9999), steps=st.integers(0, 6))
def test_every_floating_tensor_follows_the_recurrence(decay: float, steps: int):
    net = network()
    average = ModelEMA(net, decay)
    wanted = {name: value.double() for name, value in copied(net).items() if value.is_floating_point()}
    assert {"1.running_mean", "1.running_var", "1.weight", "3.bias"} < wanted.keys()
    for number in range(1, steps + 1):
        step(net, number)
        before = copied(net)
        average.update()
        assert_same(copied(net), before)  # following leaves the network alone
        wanted = {name: decay * value + (1 - decay) * before[name].double() for name, value in wanted.items()}
    assert average.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        assert average.tensors[name].dtype == torch.float32
        torch.testing.assert_close(average.tensors[name].double(), value, atol=1e-5, rtol=1e-5, msg=name)


def after_steps() -> tuple[nn.Module, ModelEMA]:
    net = network()
    average = ModelEMA(net, 0.7)
    for number in (1, 2, 3):
        step(net, number)
        average.update()
    return net, average


def with_averages(net: nn.Module, average: ModelEMA) -> dict[str, Tensor]:
    """The network's state where averages stand in: what is no floating number stays the network's own."""
    return copied(net) | {name: value.clone() for name, value in average.tensors.items()}


@pytest.mark.parametrize("ends", [None, KeyboardInterrupt])
def test_a_shown_average_goes_again_and_the_weights_come_back_to_the_bit(ends: type[BaseException] | None):
    net, average = after_steps()
    own, wanted = copied(net), with_averages(net, average)
    tensors = {name: value.data_ptr() for name, value in net.state_dict().items()}

    def look() -> None:
        with average.swap_in():
            assert_same(copied(net), wanted)
            assert int(net.state_dict()["1.num_batches_tracked"]) == 3
            if ends is not None:
                raise ends

    if ends is None:
        look()
    else:
        with pytest.raises(ends):
            look()
    assert_same(copied(net), own)
    assert_same(with_averages(net, average), wanted)  # the averages themselves go on from where they were
    # the optimizer holds these tensors
    assert {name: value.data_ptr() for name, value in net.state_dict().items()} == tensors


def test_settling_leaves_the_averages():
    net, average = after_steps()
    wanted = with_averages(net, average)
    assert not torch.equal(net.state_dict()["3.weight"], wanted["3.weight"])
    average.copy_to_model()
    assert_same(copied(net), wanted)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_saved_averages_go_on_as_if_never_left():
    net, average = after_steps()
    state = copied(net)
    saved = {name: value.clone() for name, value in average.tensors.items()} | {"of.another": torch.zeros(2)}
    again = network()
    resumed = ModelEMA(again, 0.7)
    again.load_state_dict(state)
    resumed.load(saved)
    for each, kept in ((net, average), (again, resumed)):
        step(each, 4)
        kept.update()
    assert_same(resumed.tensors, average.tensors)
    assert torch.equal(saved["3.bias"], after_steps()[1].tensors["3.bias"])  # what was saved is copied, not kept


def test_without_a_decay_nothing_is_kept_or_changed():
    net = network()
    average = ModelEMA(net, None)
    step(net, 1)
    own = copied(net)
    average.update()
    average.load({"3.weight": torch.zeros(5, 144)})
    with average.swap_in():
        assert_same(copied(net), own)
    average.copy_to_model()
    assert_same(copied(net), own)
    assert average.tensors == {}
