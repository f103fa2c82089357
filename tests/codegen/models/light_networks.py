"""Families of light blocks whose parts lie beside each other, as they are written in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """What ``body`` makes of a tensor is added to it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvMixer(nn.Sequential):
    """Patches, then large depthwise and pointwise layers; normalization behind each GELU."""

    def __init__(self, width: int = 12, depth: int = 2, kernel: int = 5, patch: int = 4) -> None:
        def activated(*convolution: nn.Module) -> nn.Sequential:
            return nn.Sequential(*convolution, nn.GELU(), nn.BatchNorm2d(width))

        blocks = [
            nn.Sequential(
                Residual(activated(nn.Conv2d(width, width, kernel, groups=width, padding="same"))),
                activated(nn.Conv2d(width, width, 1)),
            )
            for _ in range(depth)
        ]
        super().__init__(
            activated(nn.Conv2d(3, width, patch, patch)),
            *blocks,
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(width, 6),
        )


class GhostModule(nn.Module):
    """Half of the channels are made cheaply of the other half; surplus ones are cut off."""

    def __init__(self, inputs: int, outputs: int, act: bool = True) -> None:
        super().__init__()
        self.outputs, half = outputs, -(-outputs // 2)
        self.primary = nn.Sequential(
            nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half),
            nn.ReLU(inplace=True) if act else nn.Sequential(),
        )  # fmt: skip
        self.cheap = nn.Sequential(
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.ReLU(inplace=True) if act else nn.Sequential(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)[:, : self.outputs, :, :]


class GhostBottleneck(nn.Module):
    """Two ghost modules, a strided depthwise layer and squeeze-and-excite between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = GhostModule(inputs, hidden)
        self.strided = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        )
        self.reduce, self.gate = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = GhostModule(hidden, outputs, act=False)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.strided(self.expand(x))
        mean = y.mean((2, 3), keepdim=True)
        gate = functional.relu6(self.gate(functional.relu(self.reduce(mean))) + 3.0) / 6.0
        return self.project(y * gate) + self.shortcut(x)


class GhostNet(nn.Module):
    """A stem, two bottlenecks, the last layers behind the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(GhostBottleneck(8, 13, 8, 1), GhostBottleneck(8, 16, 11, 2))
        self.last = nn.Conv2d(11, 16, 1)
        self.classifier = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1))
        x = functional.relu(self.last(x)).view(x.size(0), -1)
        return self.classifier(functional.dropout(x, 0.2, self.training))


class MobileOneBlock(nn.Module):
    """Branches that could be one convolution, exported as they are trained."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()

        def branch(size: int) -> nn.Sequential:
            convolution = nn.Conv2d(
                inputs, outputs, size, stride, size // 2, groups=groups, bias=False
            )
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs))

        self.branches = nn.ModuleList([branch(kernel), branch(kernel)])
        self.scale = branch(1) if kernel > 1 else None
        self.skip = nn.BatchNorm2d(inputs) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor | float = 0.0 if self.skip is None else self.skip(x)
        if self.scale is not None:
            y = y + self.scale(x)
        for branch in self.branches:
            y = y + branch(x)
        return functional.relu(y)


class MobileOne(nn.Module):
    """A stem and two pairs of a depthwise and a pointwise block."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            MobileOneBlock(3, 8, 3, 2, 1),
            MobileOneBlock(8, 8, 3, 2, 8), MobileOneBlock(8, 12, 1, 1, 1),
            MobileOneBlock(12, 12, 3, 1, 12), MobileOneBlock(12, 12, 1, 1, 1),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.linear(x.view(x.size(0), -1))
