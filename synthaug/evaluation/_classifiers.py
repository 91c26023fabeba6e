"""Classifiers for evaluations: two families of small networks, those of torchvision and of timm.

`resnet20` to `resnet56` are the CIFAR networks of He et al. 2016, "Deep Residual Learning for Image
Recognition", section 4.2: three stages of n blocks with 16, 32 and 64 channels, 6n + 2 layers, and
shortcuts without weights (option A). https://arxiv.org/abs/1512.03385
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthaug._support.arguments import check_whole
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import Builder
from synthaug._types import ImageShape
from synthaug.features import timm_with

_SMALL_IMAGE = 64
"""Below this size torchvision's ResNets get a stem that does not reduce the image."""

_NO_PLAIN_LOGITS = ("googlenet", "inception_v3")
"""These return more than logits while they are trained."""


def small_cnn(num_classes: int, image_shape: ImageShape) -> nn.Module:
    """A plain network for small images and few labels: pairs of convolutions, then a linear layer.

    Stages of 32, 64 and 128 channels have two 3x3 convolutions with batch norm and ReLU each, and
    the image is halved in between. Images below 16 pixels get two stages (68,000 parameters at
    8x8), larger ones three (290,000). The features are averaged over a 2x2 grid and not over the
    whole image, so that a digit's upper half still differs from its lower one.

    Args:
        num_classes: Number of logits.
        image_shape: (C, H, W); H and W are at least 4.

    Raises:
        ValueError: If the image is smaller than 4 pixels.
    """
    channels, height, width = image_shape
    if min(height, width) < 4:
        raise ValueError(
            f"`image_shape` is {image_shape}; the small CNN needs at least 4 pixels a side."
        )
    widths = (32, 64) if min(height, width) < 16 else (32, 64, 128)
    layers: list[nn.Module] = []
    for stage, wide in enumerate(widths):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            layers += [_conv3x3(channels, wide), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, num_classes)]
    return nn.Sequential(*layers)


@final
class CifarResNet(nn.Module):
    """A residual network of `6 * blocks + 2` layers for small images (He et al. 2016, section 4.2).

    Args:
        blocks: Blocks of two convolutions in each of the three stages: n in the paper.
        num_classes: Number of logits.
        in_channels: 1 for gray, 3 for RGB images.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3x3(in_channels, 16), nn.BatchNorm2d(16), nn.ReLU())
        layers = []
        channels = 16
        for wide in (16, 32, 64):
            for block in range(blocks):
                stride = 2 if wide > 16 and block == 0 else 1
                layers.append(_Block(channels, wide, stride))
                channels = wide
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images float (n, C, H, W) => logits (n, num_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return logits


@final
class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = out_channels - in_channels
        self.residual = nn.Sequential(
            _conv3x3(in_channels, out_channels, stride),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            _conv3x3(out_channels, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.missing:  # option A: new channels start at zero
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.missing))
        return F.relu(self.residual(x) + shortcut)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _cifar_resnet(blocks: int) -> Builder:
    return lambda num_classes, image_shape: CifarResNet(blocks, num_classes, image_shape[0])


_OURS: dict[str, Builder] = {
    "small-cnn": small_cnn,
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet56": _cifar_resnet(9),
}


def classifier_names() -> list[str]:
    """Every name that `build_classifier` knows: ours first, then torchvision's, sorted."""
    from torchvision import models  # half a second that other commands need not pay

    theirs = models.list_models(module=models)
    return [*_OURS, *sorted(name for name in theirs if name not in _NO_PLAIN_LOGITS)]


@lasting_tensors()
def build_classifier(model: str | Builder, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Builds a classifier with fresh weights, drawn from torch's global random stream.

    torchvision's models get random weights. Gray images are shown to them as three equal channels.
    Their ResNets see images below 64 pixels through a 3x3 convolution of stride 1 without pooling,
    as is usual on CIFAR; the original stem would reduce 32 pixels to 8 before the first block.
    Vision transformers get a grid of patches for the images' size.

    Args:
        model: A name out of `classifier_names()`; "timm:" and the name of a model of timm; or a
            function of (num_classes, image_shape).
        num_classes: Number of logits, at least 2.
        image_shape: (C, H, W).

    Returns:
        A module in training mode: images float (n, C, H, W) in [-1, 1] => logits (n, num_classes).

    Raises:
        ValueError: For an unknown name, or a network that does not take images of this shape or
            does not give one logit per class.
        ImportError: For a model of timm without timm.
    """
    check_whole(2, num_classes=num_classes)
    # A user's function has a name; a callable object or a `functools.partial` has none.
    name = model if isinstance(model, str) else getattr(model, "__name__", repr(model))
    if not isinstance(model, str):
        network = model(num_classes, image_shape)
    elif model in _OURS:
        network = _OURS[model](num_classes, image_shape)
    elif model.startswith("timm:"):
        network = _timm(model.removeprefix("timm:"), num_classes, image_shape)
    elif model in (names := classifier_names()):
        network = _torchvision(model, num_classes, image_shape)
    else:
        raise ValueError(
            f"`model` {model!r} is unknown. Known models: {', '.join(names)}, and timm:NAME."
        )
    _check_logits(network, name, num_classes, image_shape)
    return network.train()


def _torchvision(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    from torchvision import models

    _, height, width = image_shape
    size = {"image_size": height} if name.startswith("vit_") and height == width else {}
    try:
        network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **size)
    except AssertionError as error:  # patches that do not fill the image
        raise _misfit(name, image_shape, error) from error
    if isinstance(network, models.ResNet) and min(image_shape[1:]) < _SMALL_IMAGE:
        network.conv1 = _conv3x3(3, network.conv1.out_channels)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network if image_shape[0] == 3 else nn.Sequential(_GrayToRGB(), network)


def _timm(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    timm = timm_with(name, f"`model` 'timm:{name}' needs timm")
    options = {"pretrained": False, "num_classes": num_classes, "in_chans": image_shape[0]}
    try:
        network: nn.Module = timm.create_model(name, img_size=image_shape[1:], **options)
    except TypeError:  # a convolutional network, which takes images of any size
        network = timm.create_model(name, **options)
    return network


@final
class _GrayToRGB(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def _check_logits(network: nn.Module, name: str, num_classes: int, image_shape: ImageShape) -> None:
    """Shows the network two blank images: a wrong shape is found here and not in the first step."""
    network.eval()  # batch norm must not learn from them
    try:
        logits = network(torch.zeros(2, *image_shape, dtype=torch.float32, device="cpu"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _misfit(name, image_shape, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"`model` {name!r} returned {got} for 2 images, expected logits of shape "
            f"(2, {num_classes})."
        )


def _misfit(name: str, image_shape: ImageShape, error: Exception) -> ValueError:
    return ValueError(
        f"`model` {name!r} does not take images of shape {image_shape}: {error} "
        "Choose another one, for example 'small-cnn'."
    )
