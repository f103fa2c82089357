"""Networks with recurrent layers, as they are written in PyTorch."""

from __future__ import annotations

from torch import Tensor, nn


class GruKeywords(nn.Module):
    """CRNN: a convolution over (steps, bands), a GRU over what it makes of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (5, 4), (2, 2))
        self.gru = nn.GRU(4 * 4, 12, batch_first=True)
        self.fc = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()  # (batch, channels, steps, bands)
        steps = maps.permute(0, 2, 1, 3).flatten(2)
        states, _ = self.gru(steps)
        return self.fc(states[:, -1])


class StackedLstm(nn.Module):
    """Two layers over (steps, channels), of which the last state of the second decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, num_layers=2, batch_first=True)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.lstm(x)
        return self.fc(last[-1])


class BothDirections(nn.Module):
    """A GRU in both directions, whose states are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0].mean(1))
