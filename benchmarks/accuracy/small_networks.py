"""Small networks of our own for inertial data and keywords: pretrained here, then adapted.

The float network is trained in PyTorch on the people that a maker would have recorded, exported to
ONNX, and goes through the project's own importer and quantizer. Devices then meet people whom
the network has never seen. Pretraining takes about a minute and is kept on disk.
"""

from __future__ import annotations

import hashlib
import inspect

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from benchmarks.accuracy import frozen
from benchmarks.accuracy.heads import with_fresh_head
from benchmarks.accuracy.samples import Samples, shared_folder
from codegen.graph.floats import FloatGraph
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.quantization.quantize import quantize, quantize_input

EPOCHS = 15
BATCH = 64
CALIBRATION = 256
TURNED = 45.0
"""Degrees by which the sensor is turned."""

NEW_KEYWORDS = ("yes", "no", "up", "down", "left", "right", "start", "stop", "open", "close")

_Pair = tuple[int, int]


def _block(inputs: int, outputs: int, kernel: _Pair, stride: _Pair) -> nn.Module:
    """Depthwise and pointwise convolution, each with batch normalization and ReLU6."""
    pad = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel, stride, pad, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class _Classifier(nn.Module):
    """Layers, global average pooling, a linear head."""

    def __init__(self, layers: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.layers(x)), 1))


def activity_network(classes: int) -> nn.Module:
    """1-D CNN for windows (6, 128, 1): 6 channels, 128 samples."""
    layers = nn.Sequential(
        nn.Conv2d(6, 32, (9, 1), (2, 1), (4, 0), bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        _block(32, 48, (9, 1), (2, 1)),
        _block(48, 64, (5, 1), (2, 1)),
        _block(64, 64, (5, 1), (1, 1)),
        _block(64, 96, (5, 1), (2, 1)),
    )
    return _Classifier(layers, 96, classes)


def keyword_network(classes: int) -> nn.Module:
    """DS-CNN for MFCC (1, 49, 10), after Zhang et al., arXiv 1711.07128."""
    layers = nn.Sequential(
        nn.Conv2d(1, 64, (10, 4), (2, 2), (5, 1), bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU6(),
        *(_block(64, 64, (3, 3), (1, 1)) for _ in range(4)),
    )
    return _Classifier(layers, 64, classes)


def activity(seed: int) -> tuple[Graph, dict[str, Samples]]:
    """Personalization: each of 9 unseen people wears the sensor in a way of their own.

    The network is pretrained on the 21 others, who wore it alike. Here it is turned by 45 degrees,
    for every person and seed about an axis of its own. A device trains on the first half of every
    activity in each recording and is tested on the rest, without the window on the border, which
    overlaps both. The head is kept.
    """
    with np.load(shared_folder() / "data" / "har_uci_hapt.npz") as data:
        # Of comparable size: g as it is, rad/s through 3.
        unit = data["scale"] / np.array([1, 1, 1, 3, 3, 3])
        x = (data["x"] * unit).astype(np.float32).transpose(0, 2, 1)[..., None]
        y, people = data["y"].astype(np.int64), data["subject"]
        known, recording = data["split"] == 0, data["experiment"]
    float_graph = pretrained("activity", activity_network(6), x[known], y[known], people[known])
    graph = quantize(float_graph, _calibration(x[known]))
    random = np.random.default_rng(seed)
    cases = {}
    for person in np.unique(people[~known]):
        own = np.flatnonzero(people == person)
        worn = quantize_input(graph, turned(x[own], random).transpose(0, 2, 3, 1))
        early, late = halves(recording[own], y[own])
        labels = y[own]
        cases[f"person {person}"] = Samples(worn[early], labels[early], worn[late], labels[late])
    return graph, cases


def turned(x: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Windows (N, 6, 128, 1) as a sensor gives them that is turned about a random axis."""
    axis = random.normal(size=3)
    rotation = Rotation.from_rotvec(TURNED * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    axes = x.reshape(len(x), 2, 3, -1)  # accelerometer and gyroscope, three axes each
    return np.einsum("ij,nsjt->nsit", rotation, axes).astype(np.float32).reshape(x.shape)


def halves(recording: NDArray[np.uint8], y: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Windows of the first and of the second half of each activity in each recording."""
    early: list[int] = []
    late: list[int] = []
    for group in np.unique(np.stack([recording, y]), axis=1).T:
        windows = np.flatnonzero((recording == group[0]) & (y == group[1])).tolist()
        half = len(windows) // 2
        early += windows[:half]
        late += windows[half + 1 :]
    return early, late


def keywords(seed: int) -> tuple[Graph, dict[str, Samples]]:
    """New words: 10 keywords that the network has never heard, by speakers it has never heard.

    It is pretrained on the other 30 keywords by 18 speakers. Then a fresh head learns the 10
    from 6 other speakers, and is tested with 6 more: 600 clips each.
    """
    with np.load(shared_folder() / "data" / "kws_arabic_mfcc.npz") as data:
        x = (data["x"].astype(np.float32) / 32)[:, None]
        y, speaker, split = data["y"].astype(np.int64), data["speaker"], data["split"]
        names = [str(name) for name in data["class_names"]]
    new = np.array([names.index(name) for name in NEW_KEYWORDS])
    old = np.setdiff1d(np.arange(len(names)), new)
    known = (split == 0) & np.isin(y, old)
    labels = np.searchsorted(old, y[known])
    network = keyword_network(len(old))
    float_graph = pretrained("keywords", network, x[known], labels, speaker[known])
    fresh = with_fresh_head(float_graph, seed, len(new))
    graph = quantize(fresh, _calibration(x[known]))
    codes = quantize_input(graph, x.transpose(0, 2, 3, 1))
    place = {int(label): index for index, label in enumerate(new)}
    wanted = np.isin(y, new)
    relabelled = np.array([place.get(int(label), 0) for label in y])
    train, test = wanted & (split == 1), wanted & (split == 2)
    samples = Samples(codes[train], relabelled[train], codes[test], relabelled[test])
    return graph, {"new keywords": samples}


def _calibration(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x[np.random.default_rng(0).choice(len(x), CALIBRATION, replace=False)]


def pretrained(
    name: str,
    network: nn.Module,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    people: NDArray[np.uint8],
) -> FloatGraph:
    """The network trained on (x, y) and imported from ONNX; prints how it does on the last people.

    A sixth of ``people`` is held out to tell that accuracy.
    """
    recipe = f"{network} {EPOCHS} {BATCH} {inspect.getsource(fit)}".encode()
    digest = hashlib.sha256(recipe + x.tobytes() + y.tobytes()).hexdigest()[:16]
    path = frozen.CACHE / f"{name}-{digest}.onnx"
    if not path.exists():
        frozen.CACHE.mkdir(exist_ok=True)
        present = np.unique(people)
        held = np.isin(people, present[-(len(present) // 6) :])
        accuracy = fit(network, x[~held], y[~held], x[held], y[held])
        print(
            f"{name}: pretrained, {100 * accuracy:.1f} % on {held.sum()} samples of people held out"
        )
        example = torch.from_numpy(x[:1])
        torch.onnx.export(network.eval(), (example,), str(path), dynamo=False, opset_version=17)
    return import_model(path)


def fit(
    network: nn.Module,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Train on (x, y) from the beginning; returns the share of the tests that come out right."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(network(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    parts = torch.from_numpy(test).split(256)
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(1) for part in parts])
    return float((predicted.numpy() == test_labels).mean())
