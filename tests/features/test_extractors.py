"""Taps: the contract of every family, the layouts decided from shapes, and the errors of impossible requests."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from references.contracts import ALL, check_contract
from uhkd.features import FeatureExtractor
from uhkd.features.selection import choose, evenly
from uhkd.features.tensor_layout import TensorLayout, infer
from uhkd.features.timm_extractor import TimmExtractor
from uhkd.models import create
from uhkd.models.cifar_variants import VARIANTS

SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3}
# name, image size, options; small images and shallow networks, so that the whole table costs seconds
FAMILIES: list[tuple[str, Any, dict[str, Any]]] = [
    ("timm/resnet18", 64, {"channels": (16, 32, 48, 64)}),
    ("timm/mobilenetv2_050", 96, {}),
    ("timm/mobilenetv3_small_050", 96, {}),
    ("timm/test_efficientnet", 64, {}),
    ("timm/convnext_atto", 64, {}),
    ("timm/regnety_002", 64, {}),
    ("timm/vit_tiny_patch16_224", 64, SMALL),
    ("timm/deit_tiny_distilled_patch16_224", 64, SMALL),
    ("timm/vit_little_patch16_reg4_gap_256", 64, SMALL),
    ("timm/vit_small_patch14_reg4_dinov2", 56, SMALL),
    ("timm/swin_tiny_patch4_window7_224", 64, {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}),
    ("timm/maxvit_pico_rw_256", 64, {"depths": (1, 1, 2, 1), "embed_dim": (32, 32, 64, 96), "stem_width": 16}),
    ("timm/coatnet_pico_rw_224", 64, {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 96), "stem_width": 16}),
    ("timm/mixer_s32_224", 128, {}),
    ("timm/resmlp_12_224", 64, {}),
    ("torchvision/resnet18", 64, {}),
    ("torchvision/swin_t", 64, {}),
    ("timm/test_resnet", (64, 96), {}),
    ("timm/vit_tiny_patch16_224", (64, 96), SMALL),
    ("torchvision/shufflenet_v2_x0_5", (96, 64), {}),
]


@pytest.mark.parametrize(("name", "size", "options"), FAMILIES, ids=lambda value: value if type(value) is str else None)
def test_family(name: str, size: int | tuple[int, int], options: dict[str, Any]) -> None:
    check_contract(create(name, num_classes=7, image_size=size, options=options))


# At odd sizes the small sibling stands for its family.
MICRO = ("vit_micro", "mixer_micro", "resmlp_micro", "swin_pico", "resnet10")
SIZED = [(name, 32) for name in VARIANTS] + [(name, size) for name in MICRO for size in (16, 8, (32, 48))]


@pytest.mark.parametrize(("name", "size"), SIZED)
def test_variant(name: str, size: int | tuple[int, int]) -> None:
    tapped = create(f"uhkd/{name}", num_classes=10, image_size=size)
    check_contract(tapped)
    if size == 32:
        assert sum(min(grid) >= 3 for _, *grid in tapped.shapes.maps) >= 3, "large enough for spectra"


def test_torchvision_vision_transformer() -> None:
    module = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(module.heads.head.weight)  # pyright: ignore (torchvision starts it at zero)
    tapped = FeatureExtractor(module, input_size=(32, 32))
    assert tapped.levels == tuple(f"encoder.layers.encoder_layer_{i}" for i in range(4))
    assert tapped.shapes.maps == ((32, 4, 4),) * 4
    check_contract(tapped)


def test_families_give_embeddings_that_the_classifier_turns_into_logits() -> None:
    for name, linear in (("timm/test_resnet", True), ("uhkd/vit_micro", True), ("uhkd/swin_pico", True)):
        reader = create(name, num_classes=5)._reader
        assert isinstance(reader, TimmExtractor)
        assert reader.linear_head is linear


def test_distilled_vit_averages_two_heads() -> None:
    tapped = create("timm/deit_tiny_distilled_patch16_224", num_classes=5, image_size=64, options=SMALL).eval()
    image = torch.rand(2, 3, 64, 64)
    signals = tapped(image, ALL)
    torch.testing.assert_close(signals.logits, tapped.plain(image))
    assert signals.embedding.shape == (2, 48)


# Networks nobody has seen before.


class Pyramid(nn.Module):
    """Three convolutional stages, NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = stage(3, 8, 1), stage(8, 16, 2), stage(16, 24, 2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(x)))
        return self.head(x.mean((2, 3)))


def stage(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class ChannelsLast(nn.Module):
    """Two stages whose maps are (B,H,W,C); the second has as many channels as rows, so its shape alone is ambiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(48, 20)
        self.first = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 20))
        self.merge = nn.Linear(80, 4)
        self.second = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.patch(blocks(x.permute(0, 2, 3, 1), 4)))
        x = self.second(self.merge(blocks(x, 2)))
        return self.head(x.mean((1, 2)))


def blocks(x: Tensor, side: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels).permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3)


class Tokens(nn.Module):
    """Class and register tokens before the image's; each block returns a tuple and the model a dictionary."""

    def __init__(self, prefix: int = 3, depth: int = 4, sequence_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 12))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(12, 5)
        self.sequence_first = sequence_first

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        if self.sequence_first:
            x = x.transpose(0, 1)
        for block in self.blocks:
            x, _ = block(x)
        if self.sequence_first:
            x = x.transpose(0, 1)
        return {"hidden": x, "logits": self.head(x[:, 0] + x[:, 1:].mean(1))}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.mix(self.norm(x)), None


def test_hand_written_pyramid() -> None:
    tapped = FeatureExtractor(Pyramid(), input_size=(32, 48))
    assert tapped.levels == ("one", "two", "three")
    assert tapped.shapes.maps == ((8, 32, 48), (16, 16, 24), (24, 8, 12))
    assert tapped.shapes.embedding == 24
    check_contract(tapped)


def test_hand_written_channels_last() -> None:
    module = ChannelsLast()
    tapped = FeatureExtractor(module, input_size=(32, 32))
    assert tapped.levels == ("first", "second")
    assert tapped.shapes.maps == ((20, 8, 8), (4, 4, 4))
    image = torch.rand(2, 3, 32, 32)
    kept: list[Tensor] = []
    module.second.register_forward_hook(lambda _m, _i, out: kept.append(out))
    maps = tapped(image, frozenset({"maps"})).maps
    torch.testing.assert_close(maps[1], kept[0].permute(0, 3, 1, 2))
    check_contract(tapped)


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("sequence_first", [False, True])
def test_hand_written_tokens(prefix: int, size: tuple[int, int], sequence_first: bool) -> None:
    module = Tokens(prefix, sequence_first=sequence_first)
    tapped = FeatureExtractor(module, input_size=size)
    grid = (size[0] // 8, size[1] // 8)
    assert tapped.levels == tuple(f"blocks.{i}" for i in range(4))
    assert tapped.shapes.maps == ((12, *grid),) * 4
    image = torch.rand(3, 3, *size)
    kept: list[Tensor] = []
    module.blocks[3].register_forward_hook(lambda _m, _i, out: kept.append(out[0]))
    last = tapped(image, frozenset({"maps"})).maps[-1]
    tokens = kept[0].transpose(0, 1) if sequence_first else kept[0]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[:, prefix:])
    check_contract(tapped, batch=3)


def test_layers_overwritten_in_place_are_read_before() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu_().mean((2, 3)))

    tapped = FeatureExtractor(InPlace(), input_size=(16, 16), levels=["conv"])
    assert tapped(torch.rand(2, 3, 16, 16), frozenset({"maps"})).maps[0].min() < 0


# Behaviour of FeatureExtractor.


def test_images_are_resized_and_normalised_inside() -> None:
    seen: list[Tensor] = []
    module = Pyramid()
    tapped = FeatureExtractor(module, input_size=(16, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    module.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    tapped(torch.full((1, 3, 40, 20), 0.6))
    assert seen[0].shape == (1, 3, 16, 24)
    expected = [(0.6 - 0.1) / 0.5, (0.6 - 0.2) / 0.25, (0.6 - 0.3) / 0.2]
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.tensor(expected))
    with pytest.raises(ValueError, match=r"floating numbers in \[0,1\], found torch.uint8"):
        tapped._prepare(torch.zeros(1, 3, 16, 24, dtype=torch.uint8))


def test_one_pass_serves_all_signals() -> None:
    module = Pyramid()
    calls: list[int] = []
    tapped = FeatureExtractor(module, input_size=(16, 16))
    module.one.register_forward_hook(lambda *_: calls.append(1))
    tapped(torch.rand(2, 3, 16, 16), ALL)
    assert len(calls) == 1
    assert not module.two._forward_hooks, "hooks must not stay behind"


def test_measuring_leaves_no_trace() -> None:
    class Counting(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("calls").add_(1)
            torch.rand(1)
            return super().forward(x)

    module = Counting().train()
    module.two.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    FeatureExtractor(module, input_size=(16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert not module.two.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in module.parameters())


def test_train_mode_takes_logits_and_maps_from_the_same_pass() -> None:
    tapped = create("timm/test_vit", num_classes=5, image_size=64, options={"drop_path_rate": 0.5, "drop_rate": 0.0})
    tapped.train()
    signals = tapped(torch.rand(2, 3, 64, 64), ALL)
    torch.testing.assert_close(tapped.module.get_classifier()(signals.embedding), signals.logits)  # pyright: ignore


def test_works_inside_autocast_and_in_half_precision() -> None:
    tapped = create("uhkd/vit_micro", num_classes=5).eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tapped(image, ALL).logits.dtype == torch.bfloat16
    half = FeatureExtractor(create("uhkd/resnet10", num_classes=5).module.to(torch.bfloat16), input_size=(32, 32))
    assert half(image, ALL).maps[0].dtype == torch.bfloat16


def test_state_holds_the_module_alone() -> None:
    tapped = FeatureExtractor(Pyramid(), input_size=(16, 16))
    assert {name.split(".")[0] for name in tapped.state_dict()} == {"module"}


def test_probe_replaces_the_head() -> None:
    tapped = create("uhkd/resnet10", num_classes=5).eval()
    image = torch.rand(2, 3, 32, 32)
    linear = nn.Linear(256, 3)
    with pytest.raises(ValueError, match="the probe takes 200 numbers, the embedding has 256"):
        tapped.set_probe(nn.Linear(200, 3))
    before = tapped.plain(image)
    tapped.set_probe(linear)
    signals = tapped(image, ALL)
    torch.testing.assert_close(signals.logits, linear(signals.embedding))
    assert tapped.shapes.logits == 3
    assert tapped(image).embedding is None
    torch.testing.assert_close(tapped.plain(image), before)
    assert tapped(image, frozenset({"maps"})).logits is None


def test_headless_networks() -> None:
    tapped = create("timm/test_resnet", num_classes=0, image_size=64).eval()
    image = torch.rand(2, 3, 64, 64)
    assert tapped.shapes.logits is None
    assert tapped.shapes.embedding == 96
    assert tapped(image, frozenset({"embedding", "maps"})).embedding.shape == (2, 96)
    with pytest.raises(ValueError, match="has no logits"):
        tapped(image)
    tapped.set_probe(nn.Linear(96, 4))
    assert tapped(image).logits.shape == (2, 4)


def test_levels_by_name_number_and_count() -> None:
    def levels(name: str, asked: Any) -> Sequence[str]:
        return create(name, num_classes=5, image_size=64, levels=asked).levels

    assert levels("timm/test_resnet", ["layer4", "layer2"]) == ("layer2", "layer4")
    assert levels("timm/test_resnet", [-1, 2]) == ("layer2", "layer4")
    assert levels("timm/test_resnet", 2) == ("layer3", "layer4")
    assert levels("timm/test_resnet", ["layer2.0.conv1", "layer3"]) == ("layer2.0.conv1", "layer3")
    assert levels("timm/test_vit", ["1", "blocks.3"]) == ("1", "3")
    assert levels("timm/test_vit", 3) == ("1", "3", "5")
    assert levels("timm/test_vit", 2) == levels("timm/test_vit", 2)


def test_choices() -> None:
    assert evenly(12, 4) == (2, 5, 8, 11)
    assert evenly(6, 4) == (1, 2, 4, 5)
    assert evenly(2, 4) == (0, 1)
    assert choose([(16, 16), (8, 8), (8, 8), (4, 4), (2, 2), (1, 1)], 4) == (2, 3, 4, 5)
    assert choose([(7, 7)] * 24, 4) == (5, 11, 17, 23)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 64, 14, 14), (224, 224), TensorLayout("nchw", (14, 14))),
        ((2, 14, 14, 64), (224, 224), TensorLayout("nhwc", (14, 14))),
        ((2, 64, 13, 13), (224, 224), TensorLayout("nchw", (13, 13))),
        ((2, 7, 14, 64), (112, 224), TensorLayout("nhwc", (7, 14))),
        ((2, 197, 192), (224, 224), TensorLayout("tokens", (14, 14), 1)),
        ((2, 201, 192), (224, 224), TensorLayout("tokens", (14, 14), 5)),
        ((2, 49, 192), (224, 224), TensorLayout("tokens", (7, 7), 0)),
        ((2, 99, 192), (112, 224), TensorLayout("tokens", (7, 14), 1)),
        ((197, 2, 192), (224, 224), TensorLayout("tokens_first", (14, 14), 1)),
        ((2, 300, 49), (224, 224), TensorLayout("channels_tokens", (7, 7), 0)),
        ((2, 10), (224, 224), None),
        ((8, 49, 96), (224, 224), None),
    ],
)
def test_layouts_from_shapes(shape: tuple[int, ...], size: tuple[int, int], expected: TensorLayout | None) -> None:
    assert infer(shape, 2, size) == expected


# Errors.


def test_unknown_tap_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no layer 'layr3'; did you mean 'layer3'"):
        create("timm/test_resnet", num_classes=5, image_size=64, levels=["layr3"])
    with pytest.raises(ValueError, match=r"no layer 'ones'; did you mean 'one'"):
        FeatureExtractor(Pyramid(), input_size=(16, 16), levels=["ones"])


def test_no_usable_tap() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 30), nn.ReLU(), nn.Linear(30, 5))
    with pytest.raises(ValueError, match=r"no usable layer.*choose a method that reads logits"):
        FeatureExtractor(module, input_size=(8, 8), levels=["1"])
    for levels, notes in ((4, 1), (0, 0)):
        tapped = FeatureExtractor(module, input_size=(8, 8), levels=levels)
        assert sum("has no feature maps" in note for note in tapped.notes) == notes
        assert tapped.shapes.embedding == 30
        assert tapped(torch.rand(2, 3, 8, 8), frozenset({"logits", "embedding"})).logits.shape == (2, 5)
        with pytest.raises(ValueError, match="without layers"):
            tapped(torch.rand(2, 3, 8, 8), frozenset({"maps"}))


def test_maps_too_small_for_spectra() -> None:
    tapped = create("timm/resnet18", num_classes=5, image_size=16, options={"channels": (8, 8, 8, 8)})
    assert tapped.levels == ("act1", "layer1", "layer2", "layer4")
    small = "at 16x16 px the maps of layer2, layer4 are smaller than 3x3"
    assert f"{small}: methods on spectra match only their means" in tapped.notes
    swin = create("uhkd/swin_pico", num_classes=5)
    assert any("maps of layers.3 are smaller" in note for note in swin.notes), swin.notes


def test_signals_that_do_not_exist() -> None:
    class AllConvolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.score = stage(3, 8, 2), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.score(self.body(x)).mean((2, 3))

    tapped = FeatureExtractor(AllConvolution(), input_size=(16, 16))
    image = torch.rand(2, 3, 16, 16)
    assert tapped.shapes.embedding is None
    assert tapped(image).logits.shape == (2, 5)
    for want, message in (
        ("embedding", "has no embedding"),
        ("spectra", "request maps"),
        ("map", "unknown fields map"),
    ):
        with pytest.raises(ValueError, match=message):
            tapped(image, frozenset({want}))
    with pytest.raises(ValueError, match="no pooled embedding"):
        tapped.set_probe(nn.Linear(8, 5))


def test_impossible_size() -> None:
    with pytest.raises(ValueError, match=r"VisionTransformer cannot process images of 8x8 px"):
        create("timm/vit_tiny_patch16_224", num_classes=5, image_size=8, options=SMALL)


def test_probing_is_quick() -> None:
    module = create("uhkd/resnet10", num_classes=5).module
    begin = time.perf_counter()
    FeatureExtractor(module, input_size=(32, 32))
    assert time.perf_counter() - begin < 5
