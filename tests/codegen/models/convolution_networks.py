"""Families with dilated, grouped or transposed convolutions, as they are written in PyTorch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


class TemporalBlock(nn.Module):
    """Two causal, dilated layers: padded on both sides, then cut off at the end."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        shape = {"kernel_size": 3, "padding": self.padding, "dilation": dilation}
        self.first = nn.Conv1d(inputs, outputs, **shape)
        self.second = nn.Conv1d(outputs, outputs, **shape)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in (self.first, self.second):
            y = self.dropout(functional.relu(layer(y)[:, :, : -self.padding].contiguous()))
        return functional.relu(y + self.shortcut(x))


class TemporalNetwork(nn.Module):
    """TCN, as sequences are classified by it: the last step's features decide."""

    def __init__(self) -> None:
        super().__init__()
        sizes = itertools.pairwise((3, 8, 8, 8))
        self.blocks = nn.Sequential(*(TemporalBlock(*s, 2**i) for i, s in enumerate(sizes)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x)[:, :, -1])


class MatchboxNet(nn.Module):
    """Keywords: separable layers along time, residual blocks, a dilated one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._separable(16, 12, 11, 2, 1)
        self.block = nn.Sequential(self._separable(12, 12, 13), nn.ReLU(),
                                   self._separable(12, 12, 13))  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv1d(12, 12, 1), nn.BatchNorm1d(12))
        self.end = nn.Sequential(self._separable(12, 12, 29, 1, 2), nn.ReLU(), nn.Conv1d(12, 8, 1),
                                 nn.BatchNorm1d(8), nn.ReLU())  # fmt: skip
        self.classes = nn.Conv1d(8, 5, 1)

    @staticmethod
    def _separable(
        inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
    ) -> nn.Module:
        pad = dilation * (kernel - 1) // 2
        return nn.Sequential(
            nn.Conv1d(inputs, inputs, kernel, stride, pad, dilation, inputs, bias=False),
            nn.Conv1d(inputs, outputs, 1, bias=False),
            nn.BatchNorm1d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = self.end(functional.relu(self.block(x) + self.shortcut(x)))
        return functional.adaptive_avg_pool1d(self.classes(x), 1).squeeze(-1)


class ShuffleNet(nn.Module):
    """ShuffleNet's first version: grouped 1x1 layers, shuffled channels, a shortcut that pools."""

    groups = 3

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.units = nn.ModuleList([self._unit(6, 12, 2), self._unit(18, 18, 1)])
        self.fc = nn.Linear(18, 5)

    def _unit(self, inputs: int, outputs: int, stride: int) -> nn.ModuleDict:
        groups = self.groups
        return nn.ModuleDict({
            "squeeze": nn.Sequential(nn.Conv2d(inputs, 9, 1, groups=groups, bias=False),
                                     nn.BatchNorm2d(9), nn.ReLU()),
            "each": nn.Sequential(nn.Conv2d(9, 9, 3, stride, 1, groups=9, bias=False),
                                  nn.BatchNorm2d(9)),
            "expand": nn.Sequential(nn.Conv2d(9, outputs, 1, groups=groups, bias=False),
                                    nn.BatchNorm2d(outputs)),
        })  # fmt: skip

    def _shuffle(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        apart = x.view(batch, self.groups, channels // self.groups, height, width)
        return apart.transpose(1, 2).contiguous().view(batch, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, unit in enumerate(self.units):
            y = unit["expand"](unit["each"](self._shuffle(unit["squeeze"](x))))
            if number == 0:
                x = functional.relu(torch.cat([functional.avg_pool2d(x, 3, 2, 1), y], 1))
            else:
                x = functional.relu(x + y)
        return self.fc(x.mean((2, 3)))


class ResNext(nn.Module):
    """A bottleneck whose 3x3 layer works in four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.block(x))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class ConvolutionalAutoencoder(nn.Module):
    """Down by strides, up by a transposed layer and by copies; a matrix makes the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(6, 1, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).flatten(1)).view(-1, 1, 8, 8)


class PictureAutoencoder(nn.Module):
    """Down by strides, up by transposed layers or by copies: no matrix makes the picture."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        up = (
            [nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 4, 2, 1)]
            if transposed
            else [nn.Upsample(scale_factor=4), nn.Conv2d(8, 2, 3, padding=1), nn.Sigmoid()]
        )
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), *up
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvNextBlock(nn.Module):
    """Depthwise convolution, then two layers along the channels, which come last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.normal = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.project = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.normal(self.depthwise(x).permute(0, 2, 3, 1))
        inner = self.scale * self.project(self.layers(inner))
        return x + inner.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Patches, normalized, a block, and a classifier of the normalized mean."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.LayerNorm(width, eps=1e-6)
        self.block = ConvNextBlock(width)
        self.last = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.patches(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.classifier(self.last(self.block(x).mean((2, 3))))


class SequenceNetwork(nn.Module):
    """Normalized layers along the features of a sequence (time, features), as transformers have."""

    def __init__(self, inputs: int = 6, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.LayerNorm(inputs)
        self.embed = nn.Linear(inputs, width)
        self.normal = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.project = nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.first(x))
        x = x + self.project(self.layers(self.normal(x)))
        return self.classifier(x.mean(1))
