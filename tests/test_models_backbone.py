"""Any timm network that has feature maps serves; the others are refused with advice."""

from __future__ import annotations

import pytest
import timm
import torch

from da_leukemia.config import Detector
from da_leukemia.errors import ConfigError
from da_leukemia.labels import WBC
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.factory import build_detector

STRIDES = (8, 16, 32)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenetv4_conv_small", (64, 96, 960)),
        ("resnet18", (128, 256, 512)),
        ("convnext_atto", (80, 160, 320)),
        ("mobilenetv3_small_050", None),
    ],
)
def test_maps_have_the_strides_and_channels_that_are_said(name, channels):
    backbone = Backbone(name, STRIDES).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 96, 160))
    assert backbone.strides == STRIDES
    if channels is not None:
        assert backbone.channels == channels
    for stride, count, feature in zip(STRIDES, backbone.channels, maps, strict=True):
        assert feature.shape == (1, count, 96 // stride, 160 // stride)


def test_maps_with_the_channels_last_are_turned():
    """Swin answers (B, H, W, C); its window needs an input of its own size."""
    backbone = Backbone("swin_tiny_patch4_window7_224", STRIDES).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 224, 224)
        raw = backbone.body((images - backbone.mean) / backbone.std)
        maps = backbone(images)
    assert raw[1].shape[-1] == backbone.channels[0]  # what this test is about
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 224 // s, 224 // s) for s, c in zip(STRIDES, backbone.channels, strict=True)
    ]
    torch.testing.assert_close(maps[0], raw[1].permute(0, 3, 1, 2))


def test_other_strides_can_be_asked_for():
    backbone = Backbone("mobilenetv3_small_050", (4, 16)).eval()
    with torch.no_grad():
        assert [m.shape[-1] for m in backbone(torch.rand(1, 3, 64, 64))] == [16, 4]
    detector = build_detector(
        Detector(backbone="mobilenetv3_small_050", strides=[16, 4], channels=16, depth=1), WBC
    ).eval()
    outputs = detector(torch.rand(1, 3, 64, 64))
    assert outputs.scores.shape == (1, 16 * 16 + 4 * 4, 1)
    assert outputs.strides.unique_consecutive().tolist() == [4, 16]


def test_images_are_normalised_as_the_weights_expect():
    backbone = Backbone("mobilenetv3_small_050", STRIDES)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert "mean" not in backbone.state_dict()


def test_a_misspelt_backbone_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match=r"detector\.backbone.*'resnet5O'.*'resnet50'"):
        Backbone("resnet5O", STRIDES)


def test_a_backbone_without_the_stride_says_which_it_has():
    with pytest.raises(ConfigError, match=r"detector\.strides.*\[64\].*32"):
        Backbone("mobilenetv3_small_050", (8, 64))


def test_a_plain_transformer_is_refused_because_its_maps_have_one_stride():
    with pytest.raises(ConfigError, match=r"detector\.strides.*vit_tiny.*\[8, 32\].*16"):
        Backbone("vit_tiny_patch16_224", STRIDES)


def test_a_network_without_feature_maps_is_refused_with_advice(monkeypatch):
    def create(*names, **settings):
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ConfigError, match=r"no feature maps.*mobilenetv4_conv_small"):
        Backbone("resnet18", STRIDES)


def test_pretrained_without_a_network_says_how_to_go_on(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(ConfigError, match=r"detector\.pretrained.*pretrained=false"):
        Backbone("mobilenetv3_small_050", STRIDES, pretrained=True)


def test_pretrained_weights_are_the_networks_when_they_can_be_had(monkeypatch):
    original = timm.create_model
    given = original("mobilenetv3_small_050", features_only=True).state_dict()

    def create(name, *, pretrained=False, **settings):
        model = original(name, **settings)
        if pretrained:
            model.load_state_dict(given)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    backbone = Backbone("mobilenetv3_small_050", STRIDES, pretrained=True)
    for key, value in backbone.body.state_dict().items():
        assert torch.equal(value, given[key])
