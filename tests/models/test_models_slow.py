"""The contract over many more families, at the smallest images that they can process."""

import pytest

from references.contracts import check_contract
from uhkd.models import create

TIMM = {
    64: """res2net50d dla34 hrnet_w18_small repvgg_a0 mobileone_s0 fastvit_t8 mobilevit_xxs mobilevitv2_050
        edgenext_xx_small cait_xxs24_224 xcit_nano_12_p16_224 poolformer_s12 pvt_v2_b0 twins_svt_small coat_tiny
        coat_lite_tiny gcvit_xxtiny swinv2_tiny_window8_256 swinv2_cr_tiny_224 focalnet_tiny_srf davit_tiny mvitv2_tiny
        hiera_tiny_224 deit3_small_patch16_224 tiny_vit_5m_224 repvit_m0_9 starnet_s1
        mambaout_femto test_nfnet tresnet_m
        sequencer2d_s gmlp_ti16_224 gmixer_12_224 visformer_tiny ese_vovnet19b_dw selecsls42 cspresnet50 darknet53
        inception_next_atto rdnet_tiny nextvit_small shvit_s1 swiftformer_xs hgnetv2_b0 efficientvit_b0 convnextv2_atto
        mobilenetv4_conv_small seresnet18 dpn48b botnet26t_256 resnetv2_50 skresnet18 vitamin_small_224 fasternet_t0
        convit_tiny vit_relpos_small_patch16_224 gernet_s densenet121 beit_base_patch16_224 convmixer_768_32""",
    56: "eva02_tiny_patch14_224",
    96: "ghostnet_100 tinynet_e lcnet_050 hardcorenas_a xception41 pit_ti_224 volo_d1_224",
    128: "inception_v3 csatv2",
    224: "efficientformer_l1 efficientformerv2_s0 levit_128s",
    240: "crossvit_tiny_240",
}
TORCHVISION = {
    64: """convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s mnasnet0_5 mobilenet_v2 mobilenet_v3_small
        regnet_y_400mf resnext50_32x4d squeezenet1_1 swin_v2_t vit_b_16""",
    96: "alexnet googlenet",
    224: "maxvit_t",
    299: "inception_v3",
}
CASES = [
    (f"{library}/{name}", size)
    for library, table in (("timm", TIMM), ("torchvision", TORCHVISION))
    for size, names in table.items()
    for name in names.split()
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), CASES)
def test_family(name: str, size: int) -> None:
    tapped = create(name, num_classes=7, image_size=size)
    check_contract(tapped)
    again = create(tapped.config.name, num_classes=7, image_size=size, levels=tapped.levels)
    assert (again.levels, again.shapes) == (tapped.levels, tapped.shapes)
