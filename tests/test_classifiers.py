import sys

import pytest
import torch
from torch import Tensor, nn

from synthaug.evaluation._classifiers import (
    CifarResNet,
    build_classifier,
    classifier_names,
    small_cnn,
)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32)])
def test_the_small_cnn_takes_small_images_and_stays_small(shape: tuple[int, int, int]) -> None:
    network = build_classifier("small-cnn", 7, shape)
    assert network(torch.rand(5, *shape)).shape == (5, 7)
    assert 50_000 < parameters(network) < 300_000


def test_the_small_cnn_tells_the_upper_half_from_the_lower_one() -> None:
    torch.manual_seed(0)
    network = small_cnn(3, (1, 8, 8)).eval()
    image = torch.zeros(1, 1, 8, 8)
    image[:, :, :2, 3:5] = 1
    assert not torch.allclose(network(image), network(image.flip(2)), atol=1e-4)


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 3), ("resnet32", 5), ("resnet56", 9)])
def test_cifar_resnets_have_the_layers_and_parameters_of_the_paper(name: str, blocks: int) -> None:
    network = build_classifier(name, 10, (3, 32, 32))
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 6 * blocks + 2  # so no shortcut has weights

    def stage(before: int, wide: int) -> int:
        first = 9 * before * wide + 9 * wide * wide
        return first + (blocks - 1) * 18 * wide * wide + blocks * 4 * wide

    stem = 9 * 3 * 16 + 2 * 16
    expected = stem + stage(16, 16) + stage(16, 32) + stage(32, 64) + 64 * 10 + 10
    assert parameters(network) == expected
    if name == "resnet20":
        assert expected == 269_722  # 0.27 million in the paper's table 6


def test_a_block_whose_weights_are_zero_passes_its_input_through_the_shortcut() -> None:
    network = CifarResNet(1, 4).eval()
    shrinking = network.blocks[1]
    for parameter in shrinking.parameters():
        parameter.data.zero_()
    x = torch.rand(2, 16, 8, 8)
    out = shrinking(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 16:], torch.zeros(2, 16, 4, 4))


def test_torchvision_resnets_keep_the_resolution_of_small_images_only() -> None:
    sizes = {}
    for size in (32, 64):
        network = build_classifier("resnet18", 5, (3, size, size))
        stem = nn.Sequential(network.get_submodule("conv1"), network.get_submodule("maxpool"))
        sizes[size] = stem(torch.zeros(1, 3, size, size)).shape[-1]
    assert sizes == {32: 32, 64: 16}


def test_gray_images_are_shown_to_torchvision_models_as_three_equal_channels() -> None:
    torch.manual_seed(0)
    gray = build_classifier("resnet18", 5, (1, 32, 32)).eval()
    torch.manual_seed(0)
    color = build_classifier("resnet18", 5, (3, 32, 32)).eval()
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(gray(x), color(x.repeat(1, 3, 1, 1)))


def test_equal_seeds_give_equal_weights() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_classifier("small-cnn", 4, (1, 8, 8)).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_checking_the_shape_leaves_batch_norm_as_it_was() -> None:
    network = build_classifier("small-cnn", 4, (1, 8, 8))
    assert network.training
    assert network.state_dict()["1.num_batches_tracked"] == 0
    assert torch.equal(network.state_dict()["1.running_mean"], torch.zeros(32))


def test_an_unknown_name_lists_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'resnet19' is unknown.*small-cnn, resnet20.*resnet18"):
        build_classifier("resnet19", 10, (3, 32, 32))


def test_models_that_return_more_than_logits_are_not_offered() -> None:
    names = classifier_names()
    assert "mobilenet_v2" in names
    assert not {"googlenet", "inception_v3"} & set(names)
    assert len(set(names)) == len(names)


def test_a_model_that_does_not_take_the_images_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"'alexnet' does not take images of shape \(3, 8, 8\)"):
        build_classifier("alexnet", 10, (3, 8, 8))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        build_classifier("small-cnn", 10, (3, 2, 2))


def test_a_function_of_ones_own_is_checked_for_its_logits() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    def right(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def wrong(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        return Flat()

    assert build_classifier(right, 3, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"'wrong' returned \(2, 64\).*\(2, 3\)"):
        build_classifier(wrong, 3, (1, 8, 8))


def test_one_class_is_nothing_to_tell_apart() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        build_classifier("small-cnn", 1, (1, 8, 8))


def test_vision_transformers_see_small_images_as_patches() -> None:
    network = build_classifier("vit_b_16", 3, (1, 32, 32))
    assert network.get_parameter("1.encoder.pos_embedding").shape[1] == 1 + 4
    with pytest.raises(ValueError, match=r"'vit_b_16' does not take images of shape \(3, 24, 24\)"):
        build_classifier("vit_b_16", 3, (3, 24, 24))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_models_of_timm_are_built_by_name(name: str) -> None:
    pytest.importorskip("timm")
    network = build_classifier(f"timm:{name}", 3, (1, 32, 32))
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    assert network.training
    with pytest.raises(ValueError, match="timm has no model 'resnet0'"):
        build_classifier("timm:resnet0", 3, (1, 32, 32))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'synthaug\[timm\]'"):
        build_classifier("timm:resnet18", 3, (1, 32, 32))
