"""The families that users bring, written as they are written in PyTorch.

``NETWORKS`` are of reduced width, for tests; ``FULL_SIZE`` are those that people deploy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.codegen.models.convolution_networks import (
    ConvNext,
    ConvolutionalAutoencoder,
    MatchboxNet,
    PictureAutoencoder,
    ResNext,
    SequenceNetwork,
    ShuffleNet,
    TemporalNetwork,
)
from tests.codegen.models.light_networks import ConvMixer, GhostNet, MobileOne
from tests.codegen.models.recurrent_networks import BothDirections, GruKeywords, StackedLstm


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU6,
    padding: int | tuple[int, int] | None = None,
) -> nn.Sequential:
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (outputs, stride), global pool, classifier."""

    blocks: tuple[tuple[int, int], ...] = ((12, 1), (16, 2), (16, 1))
    classes = 10

    def __init__(self) -> None:
        super().__init__()
        inputs = 8
        layers = [conv_bn(3, inputs, 3, 2, act=nn.ReLU)]
        for outputs, stride in self.blocks:
            layers += [
                conv_bn(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU),
                conv_bn(inputs, outputs, 1, act=nn.ReLU),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, self.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.fc(x.view(-1, self.fc.in_features))


class PersonDetection(MobileNetV1):
    """MLPerf Tiny visual wake words: width 0.25."""

    blocks = (
        (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2),
        (128, 1), (128, 1), (128, 1), (128, 1), (128, 1), (256, 2), (256, 1),
    )  # fmt: skip
    classes = 2


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [conv_bn(inputs, hidden, 1)] if expand > 1 else []
        layers += [
            conv_bn(hidden, hidden, kernel, stride, groups=hidden),
            conv_bn(hidden, outputs, 1, act=None),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """As torchvision writes it: mean over both axes, dropout, classifier in a Sequential.

    Blocks are (expansion, outputs, kernel, stride).
    """

    blocks: tuple[tuple[int, int, int, int], ...] = ((1, 6, 3, 1), (3, 8, 3, 2), (3, 8, 3, 1))
    stem = 6
    last = 16
    classes = 7

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, self.stem, 3, 2)]
        inputs = self.stem
        for expand, outputs, kernel, stride in self.blocks:
            layers.append(InvertedResidual(inputs, outputs, expand, kernel, stride))
            inputs = outputs
        layers.append(conv_bn(inputs, self.last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(self.last, self.classes))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class MobileNetV2Width035(MobileNetV2):
    """Width 0.35, channels in steps of eight; the last convolution keeps its width."""

    blocks = (
        (1, 8, 3, 1),
        (6, 8, 3, 2), (6, 8, 3, 1),
        (6, 16, 3, 2), (6, 16, 3, 1), (6, 16, 3, 1),
        (6, 24, 3, 2), (6, 24, 3, 1), (6, 24, 3, 1), (6, 24, 3, 1),
        (6, 32, 3, 1), (6, 32, 3, 1), (6, 32, 3, 1),
        (6, 56, 3, 2), (6, 56, 3, 1), (6, 56, 3, 1),
        (6, 112, 3, 1),
    )  # fmt: skip
    stem = 16
    last = 1280
    classes = 10


class ProxylessNas(MobileNetV2):
    """Mixed kernels; the head pools by mean()."""

    blocks = ((1, 4, 3, 1), (3, 8, 5, 2), (3, 8, 7, 1), (6, 8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(3).mean(2))


class ProxylessNasWidth03(ProxylessNas):
    """ProxylessNAS-mobile (arXiv 1812.00332), width 0.3, channels in steps of eight."""

    blocks = (
        (1, 8, 3, 1),
        (3, 16, 5, 2), (3, 16, 3, 1),
        (3, 16, 7, 2), (3, 16, 3, 1), (3, 16, 5, 1), (3, 16, 5, 1),
        (6, 24, 7, 2), (3, 24, 5, 1), (3, 24, 5, 1), (3, 24, 5, 1),
        (6, 32, 5, 1), (3, 32, 5, 1), (3, 32, 5, 1), (3, 32, 5, 1),
        (6, 56, 7, 2), (6, 56, 7, 1), (3, 56, 7, 1), (3, 56, 7, 1),
        (6, 96, 7, 1),
    )  # fmt: skip
    stem = 16
    last = 1280
    classes = 10


class McuNet(MobileNetV2):
    """Ends in a projection without activation."""

    blocks = ((1, 4, 3, 1), (3, 6, 7, 2), (3, 6, 3, 1), (5, 8, 5, 2))

    def __init__(self) -> None:
        super().__init__()
        self.features = self.features[:-1]
        self.classifier = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class ResNet8(nn.Module):
    """MLPerf Tiny image classification."""

    def __init__(self, width: int = 4, size: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, act=nn.ReLU)
        self.stages = nn.ModuleList()
        for inputs, outputs, stride in (
            (width, width, 1),
            (width, 2 * width, 2),
            (2 * width, 4 * width, 2),
        ):
            stage = nn.Module()
            stage.first = conv_bn(inputs, outputs, 3, stride, act=nn.ReLU)
            stage.second = conv_bn(outputs, outputs, 3, act=None)
            stage.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
            self.stages.append(stage)
        self.pool = size // 4
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = functional.relu(stage.second(stage.first(x)) + stage.shortcut(x))
        x = functional.avg_pool2d(x, self.pool)
        return functional.softmax(self.fc(x.flatten(1)), dim=1)


class DsCnn(nn.Module):
    """MLPerf Tiny keyword spotting: 49x10 MFCC, kernel 10x4, padding as TensorFlow's 'same'."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(1, width, (10, 4), (2, 2), act=nn.ReLU, padding=0)
        self.drop = nn.Dropout(0.2)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    conv_bn(width, width, 3, groups=width, act=nn.ReLU),
                    conv_bn(width, width, 1, act=nn.ReLU),
                )
                for _ in range(blocks)
            )
        )
        self.pool = nn.AvgPool2d((25, 5))
        self.fc = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (1, 1, 4, 5))
        x = self.blocks(self.drop(self.stem(x)))
        return self.fc(torch.flatten(self.drop(self.pool(x)), start_dim=1))


class DsCnnFlat(DsCnn):
    """The same on flat features (490 values), as speech front ends give them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 1, 49, 10))


class Inertial(nn.Module):
    """1-D CNN for windows of an accelerometer: max pools, a hidden fully connected layer."""

    def __init__(
        self, widths: tuple[int, int, int] = (8, 12, 8), hidden: int = 16, length: int = 64
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.features = nn.Sequential(
            nn.Conv1d(6, a, 5, stride=1, padding=2), nn.BatchNorm1d(a), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(a, b, 5, padding="same"), nn.ReLU(), nn.MaxPool1d(3, stride=2, padding=1),
            nn.Conv1d(b, c, 3), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        left = (length // 4 - 2) // 2
        self.classifier = nn.Sequential(
            nn.Linear(c * left, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.reshape(x.size(0), -1))


class InertialSeparable(nn.Module):
    """Depthwise 1-D convolutions, batch normalization of the input, global pool, (N, L, C) in."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm1d(3)
        self.layers = nn.Sequential(
            nn.Conv1d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU6(),
            nn.Conv1d(8, 8, 5, 2, 2, groups=8, bias=False), nn.BatchNorm1d(8), nn.ReLU6(),
            nn.Conv1d(8, 12, 1, bias=False), nn.BatchNorm1d(12), nn.ReLU6(),
            nn.AdaptiveAvgPool1d(1),
        )  # fmt: skip
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.normalize(x.permute(0, 2, 1)))
        return functional.log_softmax(self.fc(x.squeeze(-1)), dim=-1)


class Autoencoder(nn.Module):
    """MLPerf Tiny anomaly detection."""

    def __init__(self, features: int = 40, width: int = 16, depth: int = 2, neck: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = (features, *[width] * depth, neck, *[width] * depth)
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LeNet(nn.Module):
    """The tutorial's network: max pool before the activation, CHW flattened, log softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(6 * 4 * 3, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = functional.relu(self.fc1(x.view(-1, 6 * 4 * 3)))
        x = functional.dropout(x, training=self.training)
        return functional.log_softmax(self.fc2(x), dim=1)


class Fire(nn.Module):
    """SqueezeNet: concatenation, ceil_mode, a convolution as classifier before the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.expand1 = nn.Conv2d(4, 6, 1)
        self.expand3 = nn.Conv2d(4, 10, 3, padding=1)
        self.classifier = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(self.pool(functional.relu(self.stem(x)))))
        x = torch.cat([functional.relu(self.expand1(x)), functional.relu(self.expand3(x))], 1)
        return functional.adaptive_avg_pool2d(self.classifier(x), 1).flatten(1)


class PreActivation(nn.Module):
    """Batch normalization and Relu before the convolution, on a tensor that a shortcut reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.act = nn.Hardtanh(-2.0, 2.0)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - self.mean) / self.std)
        y = self.conv1(functional.relu(self.bn1(x)))
        y = self.conv2(self.act(self.bn2(y)) * 0.5)
        x = functional.relu(self.bn3(x + y))
        return self.fc(functional.max_pool2d(x, kernel_size=8).squeeze(3).squeeze(2))


class SqueezeExcite(nn.Module):
    """Channels times what two fully connected layers make of their means."""

    def __init__(self, channels: int, less: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, less, 1), nn.Conv2d(less, channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        mean = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class Excited(nn.Module):
    """An inverted bottleneck with squeeze-and-excite between depthwise and pointwise layer."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int, act: type[nn.Module],
        excite: SqueezeExcite,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, hidden, 1, act=act),
            conv_bn(hidden, hidden, 3, stride, groups=hidden, act=act),
            excite,
            conv_bn(hidden, outputs, 1, act=None),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.shortcut else y


class MobileNetV3(nn.Module):
    """The first blocks of MobileNetV3-small: HardSwish, squeeze-and-excite with HardSigmoid."""

    def __init__(self) -> None:
        super().__init__()

        def excite(channels: int, less: int) -> SqueezeExcite:
            return SqueezeExcite(channels, less, nn.ReLU(), nn.Hardsigmoid())

        self.features = nn.Sequential(
            conv_bn(3, 8, 3, 2, act=nn.Hardswish),
            Excited(8, 8, 8, 1, nn.ReLU, excite(8, 4)),
            Excited(8, 16, 12, 2, nn.Hardswish, excite(16, 4)),
            Excited(12, 24, 12, 1, nn.Hardswish, excite(24, 6)),
            conv_bn(12, 24, 1, act=nn.Hardswish),
        )
        self.classifier = nn.Sequential(nn.Linear(24, 16), nn.Hardswish(), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class EfficientNet(nn.Module):
    """Blocks of EfficientNet: SiLU, squeeze-and-excite with Sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8, 3, 2, act=nn.SiLU),
            Excited(8, 16, 8, 1, nn.SiLU, SqueezeExcite(16, 2, nn.SiLU(), nn.Sigmoid())),
            Excited(8, 24, 12, 2, nn.SiLU, SqueezeExcite(24, 3, nn.SiLU(), nn.Sigmoid())),
            conv_bn(12, 32, 1, act=nn.SiLU),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: one half of the channels goes past the convolutions, then both are mixed."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, half = stride, channels // 2
        inputs = half if stride == 1 else half // 2 * 2
        self.right = nn.Sequential(
            conv_bn(inputs, half, 1, act=nn.ReLU),
            conv_bn(half, half, 3, stride, groups=half, act=None),
            conv_bn(half, half, 1, act=nn.ReLU),
        )
        self.left = nn.Sequential(
            conv_bn(inputs, inputs, 3, stride, groups=inputs, act=None),
            conv_bn(inputs, half, 1, act=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, self.right(right)), dim=1)
        else:
            x = torch.cat((self.left(x), self.right(x)), dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleNetV2(nn.Module):
    """A unit that halves the picture, and two that don't."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 1, act=nn.ReLU)
        self.units = nn.Sequential(ShuffleUnit(16, 2), ShuffleUnit(16), ShuffleUnit(16))
        self.last = conv_bn(16, 20, 1, act=nn.ReLU)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean([2, 3]))


class SubSpectralNorm(nn.Module):
    """Batch normalization by channel and band of frequencies."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self.bands, self.bn = bands, nn.BatchNorm2d(channels * bands)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = self.bn(x.view(batch, channels * self.bands, height // self.bands, width))
        return x.view(batch, channels, height, width)


class BroadcastBlock(nn.Module):
    """BC-ResNet: what is learned over time is added at every frequency."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequency = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels)
        self.bands = SubSpectralNorm(channels, 4)
        self.time = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels)
        self.bn, self.mix = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.bands(self.frequency(x))
        over_time = functional.silu(self.bn(self.time(kept.mean(2, keepdim=True))))
        return functional.relu(x + kept + self.mix(over_time))


class BcResNet(nn.Module):
    """Broadcasted residuals on a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 5, (2, 2), 2), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(BroadcastBlock(8), BroadcastBlock(8))
        self.fc = nn.Linear(8 * 10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean(2).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v1": (MobileNetV1, (3, 24, 24)),
    "mobilenet_v2": (MobileNetV2, (3, 20, 20)),
    "proxylessnas": (ProxylessNas, (3, 20, 20)),
    "mcunet": (McuNet, (3, 20, 20)),
    "resnet8": (ResNet8, (3, 16, 16)),
    "ds_cnn": (DsCnn, (1, 49, 10)),
    "ds_cnn_flat": (DsCnnFlat, (490,)),
    "inertial": (Inertial, (6, 64)),
    "inertial_separable": (InertialSeparable, (40, 3)),
    "autoencoder": (Autoencoder, (40,)),
    "lenet": (LeNet, (1, 24, 20)),
    "fire": (Fire, (3, 22, 22)),
    "preactivation": (PreActivation, (3, 8, 8)),
    "mobilenet_v3": (MobileNetV3, (3, 20, 20)),
    "efficientnet": (EfficientNet, (3, 20, 20)),
    "shufflenet_v2": (ShuffleNetV2, (3, 16, 16)),
    "bc_resnet": (BcResNet, (1, 16, 20)),
    "temporal": (TemporalNetwork, (3, 45)),
    "matchbox": (MatchboxNet, (16, 64)),
    "shufflenet": (ShuffleNet, (3, 16, 16)),
    "resnext": (ResNext, (3, 12, 12)),
    "autoencoder_upsampling": (ConvolutionalAutoencoder, (1, 8, 8)),
    "convmixer": (ConvMixer, (3, 20, 20)),
    "ghostnet": (GhostNet, (3, 20, 20)),
    "mobileone": (MobileOne, (3, 20, 20)),
    "convnext": (ConvNext, (3, 20, 20)),
    "sequence": (SequenceNetwork, (20, 6)),
    "gru_keywords": (GruKeywords, (1, 25, 10)),
    "stacked_lstm": (StackedLstm, (16, 6)),
    "both_directions": (BothDirections, (12, 5)),
    "autoencoder_transposed": (partial(PictureAutoencoder, True), (2, 12, 8)),
    "autoencoder_copies": (partial(PictureAutoencoder, False), (2, 12, 8)),
}

FULL_SIZE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2_0.35_128": (MobileNetV2Width035, (3, 128, 128)),
    "mobilenet_v2_0.35_144": (MobileNetV2Width035, (3, 144, 144)),
    "proxylessnas_0.3_128": (ProxylessNasWidth03, (3, 128, 128)),
    "mobilenet_v1_0.25_96": (PersonDetection, (3, 96, 96)),
    "resnet8_32": (partial(ResNet8, 16, 32), (3, 32, 32)),
    "ds_cnn_49x10": (partial(DsCnn, 64, 4), (1, 49, 10)),
    "inertial_6x128": (partial(Inertial, (32, 64, 64), 64, 128), (6, 128)),
    "autoencoder_640": (partial(Autoencoder, 640, 128, 4, 8), (640,)),
}
