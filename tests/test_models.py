"""The network against torchvision's and the published checkpoint's layout."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
import torchvision
from torch import nn

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.models.barlow_twins import BarlowTwins, parse_projector
from barlowtwins.models.resnet import BACKBONES, STEMS, build_backbone, recognize_backbone

OURS = ["resnet8_x0_5_grid4", "resnet10_x0_5", "resnet10"]  # what torchvision has no name for
TORCHVISION = [name for name in BACKBONES if name not in OURS]


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = build_backbone(name), torchvision.models.get_model(name)
    features = theirs.fc.in_features
    theirs.fc = nn.Identity()
    assert shapes(ours) == shapes(theirs)
    assert type(ours) is torchvision.models.ResNet
    assert type(ours.fc) is nn.Identity
    assert ours.fc.in_features == ours.fc.out_features == features


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_recognized_from_its_keys(name):
    with torch.device("meta"):
        for stem, count in itertools.product(STEMS, (1, 3)):
            found = recognize_backbone(build_backbone(name, stem=stem, channels=count).state_dict())
            assert found == (name, "imagenet" if stem == "imagenet" else "small", count)


def test_other_keys_are_refused_with_what_was_found():
    with pytest.raises(WeightsError, match=r"conv1\.weight.*first keys: patch_embed"):
        recognize_backbone({"patch_embed.weight": torch.zeros(1)})
    state = build_backbone("resnet18").state_dict()
    del state["layer4.1.conv1.weight"], state["layer4.1.conv2.weight"]
    state = {key: value for key, value in state.items() if not key.startswith("layer4.1")}
    with pytest.raises(WeightsError, match=r"\(2, 2, 2, 1\) basic blocks"):
        recognize_backbone(state)


def test_published_parameter_counts():
    with torch.device("meta"):
        model = BarlowTwins()
    assert sum(p.numel() for p in model.backbone.parameters()) == 23_508_032
    assert sum(p.numel() for p in model.projector.parameters()) == 151_027_712


def test_published_checkpoint_keys():
    """The layout of the published `checkpoint.pth`: torchvision's ResNet-50 without fc, projector, bn."""
    with torch.device("meta"):
        keys = set(BarlowTwins().state_dict())
        resnet = torchvision.models.resnet50()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"backbone.{key}" for key in resnet.state_dict() if not key.startswith("fc.")}
    expected |= {f"projector.{index}.weight" for index in (0, 3, 6)}
    expected |= {f"projector.{index}.{name}" for index in (1, 4) for name in norm}
    expected |= {f"bn.{name}" for name in norm[2:]}
    assert keys == expected


@pytest.mark.parametrize(
    ("stem", "side"), [("imagenet", 8), ("small", 32), ("small-stride2", 16), ("small-padding2", 34)]
)
def test_stems_set_the_resolution_of_the_first_stage(stem, side):
    net = build_backbone("resnet10_x0_5", stem=stem, channels=1)
    seen = []
    net.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 256)
    assert seen == [side]


def test_a_grid_of_means_keeps_the_place():
    """The features of an image mirrored along both sides are those of its parts the other way round."""
    net = build_backbone("resnet8_x0_5_grid4", stem="small", channels=1).eval()
    for convolution in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
        convolution.stride, convolution.weight.data = (
            (1, 1),
            convolution.weight.data + convolution.weight.data.flip(-1, -2),
        )
    image = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        there, back = net(image), net(image.flip(-1, -2))
    assert there.shape == (2, net.fc.in_features) == (2, 2048)
    torch.testing.assert_close(back, there.unflatten(1, (128, 4, 4)).flip(-1, -2).flatten(1))


def test_residual_branches_start_at_zero():
    for name in ("resnet18", "resnet50"):
        net = build_backbone(name)
        last = "bn3" if name == "resnet50" else "bn2"
        weights = [p for key, p in net.named_parameters() if key.endswith(f"{last}.weight")]
        assert weights and all((p == 0).all() for p in weights)
    for name in OURS:
        assert (build_backbone(name).layer1[0].bn2.weight == 1).all()
    assert (build_backbone("resnet18", zero_init_residual=False).layer1[0].bn2.weight == 1).all()


def test_initial_scale_of_replaced_layers_is_kaimings():
    torch.manual_seed(0)
    net = build_backbone("resnet18", stem="small", channels=1)
    fan_out = 64 * 9
    assert net.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@pytest.mark.parametrize("kwargs", [{"name": "resnet51"}, {"stem": "tiny"}])
def test_unknown_names_list_the_known(kwargs):
    with pytest.raises(ConfigError, match="choose one of"):
        build_backbone(**kwargs)


@pytest.mark.parametrize("text", ["", "a", "8192-", "-1", "0", "12-0", "8192,8192", "²"])
def test_projector_text_is_checked(text):
    with pytest.raises(ConfigError, match="joined by dashes"):
        parse_projector(text)


@pytest.mark.parametrize(("text", "layers"), [("16", [16]), ("32-16", [32, 16]), ("64-32-16", [64, 32, 16])])
def test_projector_depths(text, layers):
    model = BarlowTwins("resnet10_x0_5", text, stem="small")
    assert [m.out_features for m in model.projector if isinstance(m, nn.Linear)] == layers
    assert isinstance(model.projector[-1], nn.Linear)
    assert model.embed(torch.randn(4, 3, 16, 16)).shape == (4, layers[-1])


def test_loss_and_running_statistics_equal_the_published_forward():
    """bn(z1)' bn(z2) / N with a real BatchNorm1d, whose buffers ours must follow."""
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "24-16", stem="small", channels=1).double().eval()
    y1, y2 = torch.randn(2, 12, 1, 16, 16, dtype=torch.float64)
    z1, z2 = model.embed(y1), model.embed(y2)
    bn = nn.BatchNorm1d(16, affine=False).double()
    c = bn(z1).T @ bn(z2) / 12
    on = (c.diagonal() - 1).square().sum()
    expected = on + 0.0051 * (c.square().sum() - c.diagonal().square().sum())

    model.train()
    for module in (*model.backbone.modules(), *model.projector.modules()):
        module.training = False  # only the loss trains: the inner batch norms stay as in the reference above
    torch.testing.assert_close(model(y1, y2), expected)
    for key, value in bn.state_dict().items():
        torch.testing.assert_close(model.bn.state_dict()[key], value)


def test_backbone_pickles_as_a_plain_torchvision_resnet():
    net = build_backbone("resnet10_x0_5")
    buffer = io.BytesIO()
    torch.save(net, buffer)
    assert b"barlowtwins" not in buffer.getvalue()


def test_every_parameter_gets_a_gradient():
    model = BarlowTwins("resnet10_x0_5", "24-16", stem="small")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # zero-initialised residual branches have zero gradients at first
    model(*torch.randn(2, 8, 3, 16, 16)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
