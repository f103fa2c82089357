"""The families that users bring, at reduced width, written as they are written in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


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
    """Depthwise separable convolutions, global pool, classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers = [conv_bn(3, 8, 3, 2, act=nn.ReLU)]
        for inputs, outputs, stride in ((8, 12, 1), (12, 16, 2), (16, 16, 1)):
            layers += [
                conv_bn(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU),
                conv_bn(inputs, outputs, 1, act=nn.ReLU),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.fc(x.view(-1, 16))


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
    """As torchvision writes it: mean over both axes, dropout, classifier in a Sequential."""

    blocks = ((1, 6, 3, 1), (3, 8, 3, 2), (3, 8, 3, 1))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 6, 3, 2)]
        inputs = 6
        for expand, outputs, kernel, stride in self.blocks:
            layers.append(InvertedResidual(inputs, outputs, expand, kernel, stride))
            inputs = outputs
        layers.append(conv_bn(inputs, 16, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class ProxylessNas(MobileNetV2):
    """Mixed kernels; the head pools by mean()."""

    blocks = ((1, 4, 3, 1), (3, 8, 5, 2), (3, 8, 7, 1), (6, 8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(3).mean(2))


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

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, act=nn.ReLU)
        self.stages = nn.ModuleList()
        for inputs, outputs, stride in ((4, 4, 1), (4, 8, 2), (8, 16, 2)):
            stage = nn.Module()
            stage.first = conv_bn(inputs, outputs, 3, stride, act=nn.ReLU)
            stage.second = conv_bn(outputs, outputs, 3, act=None)
            stage.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
            self.stages.append(stage)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = functional.relu(stage.second(stage.first(x)) + stage.shortcut(x))
        x = functional.avg_pool2d(x, 4)
        return functional.softmax(self.fc(x.flatten(1)), dim=1)


class DsCnn(nn.Module):
    """MLPerf Tiny keyword spotting: 49x10 MFCC, kernel 10x4, padding as TensorFlow's 'same'."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(1, width, (10, 4), (2, 2), act=nn.ReLU, padding=0)
        self.drop = nn.Dropout(0.2)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    conv_bn(width, width, 3, groups=width, act=nn.ReLU),
                    conv_bn(width, width, 1, act=nn.ReLU),
                )
                for _ in range(2)
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

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(6, 8, 5, stride=1, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 12, 5, padding="same"), nn.ReLU(), nn.MaxPool1d(3, stride=2, padding=1),
            nn.Conv1d(12, 8, 3), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(8 * 7, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 6)
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

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = (40, width, width, 4, width, width)
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 40))

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
}
