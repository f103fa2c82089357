"""Trains the demo's digit model on the lab's part of the data and writes it as float ONNX.

    pip install torch==2.13.0        # only for this script, not a dependency of the project
    python examples/digits/train.py

Writes next to itself `digits.onnx` (opset 17, batch normalization not folded, so that the importer
has work to do) and `calibration.npz` (array `x`: float32 samples of the lab's part, NCHW, and `y`:
their classes, which say that the model is a classifier). Both are committed; run this only to
change the model.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from simulator.world.digits import lab_split, load

HERE = Path(__file__).parent
EPOCHS = 120
CALIBRATION_SAMPLES = 200

# Layer name, kernel, inputs, outputs, stride, depthwise, activation.
Row = tuple[str, int, int, int, int, bool, str]
_BLOCKS = [  # name, inputs, expanded, outputs, stride
    ("b1", 12, 36, 24, 2),
    ("b2", 24, 72, 24, 1),
    ("b3", 24, 96, 48, 2),
    ("b4", 48, 144, 48, 1),
]


def layer_table() -> list[Row]:
    """All convolutions in order; a block with equal shapes at both ends adds its input."""
    rows: list[Row] = [("stem", 3, 1, 12, 1, False, "relu")]
    for name, inputs, expanded, outputs, stride in _BLOCKS:
        rows += [
            (f"{name}_pw1", 1, inputs, expanded, 1, False, "relu6"),
            (f"{name}_dw", 3, expanded, expanded, stride, True, "relu6"),
            (f"{name}_pw2", 1, expanded, outputs, 1, False, "none"),
        ]
    return [*rows, ("last", 1, 48, 128, 1, False, "relu6")]


RESIDUAL = {name for name, inputs, _, outputs, stride in _BLOCKS if inputs == outputs}


class DigitNet(nn.Module):
    """The table above as a trainable network; input (n, 1, 8, 8), output logits (n, 10)."""

    def __init__(self) -> None:
        """Makes the layers with torch's usual initialization."""
        super().__init__()
        self.convs = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        for name, kernel, inputs, outputs, stride, depthwise, _ in layer_table():
            self.convs[name] = nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2,
                groups=inputs if depthwise else 1, bias=False,
            )  # fmt: skip
            self.norms[name] = nn.BatchNorm2d(outputs)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        entry = x
        for name, _, _, _, _, _, activation in layer_table():
            block = name.split("_")[0]
            if name.endswith("_pw1"):
                entry = x
            x = self.norms[name](self.convs[name](x))
            if activation == "relu6":
                x = x.clamp(0, 6)
            elif activation == "relu":
                x = x.relu()
            if name.endswith("_pw2") and block in RESIDUAL:
                x = x + entry
        return self.head(x.mean((2, 3)))


def augment(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """What a lab would try: shifts by up to a pixel, slight rotation, a little noise."""
    count = len(x)
    angle = (torch.rand(count, generator=random) - 0.5) * (2 * np.deg2rad(8.0))
    shift = (torch.rand(count, 2, generator=random) - 0.5) * 0.35
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = nn.functional.grid_sample(x, grid, align_corners=False)
    return (moved + 0.02 * torch.randn(x.shape, generator=random)).clamp(0, 1)


def train(x: NDArray[np.float32], y: NDArray[np.int64]) -> DigitNet:
    """A network trained on x (n, 1, 8, 8), y (n,)."""
    torch.manual_seed(7)
    random = torch.Generator().manual_seed(7)
    model = DigitNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(x), generator=random).split(50):
            loss = nn.functional.cross_entropy(
                model(augment(inputs[batch], random)), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


def to_onnx(model: DigitNet) -> onnx.ModelProto:
    """The network node by node; node names are the layer names that update plans use."""
    nodes: list[onnx.NodeProto] = []
    initializers = OrderedDict[str, NDArray[np.float32]]()

    def parameter(name: str, value: torch.Tensor) -> str:
        initializers[name] = value.detach().numpy().astype(np.float32)
        return name

    value = "image"
    entry = value
    for name, kernel, inputs, _, stride, depthwise, activation in layer_table():
        if name.endswith("_pw1"):
            entry = value
        weight = parameter(f"{name}.weight", model.convs[name].weight)  # type: ignore[arg-type]
        nodes.append(
            helper.make_node(
                "Conv", [value, weight], [f"{name}.conv"], name=name, kernel_shape=[kernel] * 2,
                strides=[stride] * 2, pads=[kernel // 2] * 4, group=inputs if depthwise else 1,
            )
        )  # fmt: skip
        norm = model.norms[name]
        statistics = [
            parameter(f"{name}.{part}", getattr(norm, kind))
            for part, kind in (
                ("gain", "weight"), ("shift", "bias"),
                ("mean", "running_mean"), ("variance", "running_var"),
            )
        ]  # fmt: skip
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"{name}.conv", *statistics], [f"{name}.norm"],
                name=f"{name}_norm", epsilon=float(norm.eps),  # type: ignore[arg-type]
            )
        )  # fmt: skip
        value = f"{name}.norm"
        if activation == "relu6":
            initializers.setdefault("zero", np.float32(0.0))  # type: ignore[arg-type]
            initializers.setdefault("six", np.float32(6.0))  # type: ignore[arg-type]
            nodes.append(
                helper.make_node("Clip", [value, "zero", "six"], [f"{name}.out"], f"{name}_relu6")
            )
            value = f"{name}.out"
        elif activation == "relu":
            nodes.append(helper.make_node("Relu", [value], [f"{name}.out"], f"{name}_relu"))
            value = f"{name}.out"
        block = name.split("_")[0]
        if name.endswith("_pw2") and block in RESIDUAL:
            nodes.append(helper.make_node("Add", [value, entry], [f"{block}.out"], f"{block}_add"))
            value = f"{block}.out"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pool.out"], "pool"),
        helper.make_node("Flatten", ["pool.out"], ["features"], "flatten"),
        helper.make_node(
            "Gemm",
            ["features", parameter("head.weight", model.head.weight),
             parameter("head.bias", model.head.bias)],
            ["logits"], "head", transB=1,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in initializers.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="tinyfleet examples"
    )
    proto.ir_version = 8  # of opset 17's time, so that older runtimes load it too
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    """Trains, reports the accuracy, writes both files."""
    torch.set_num_threads(1)  # the same bits on any number of cores
    x, y = load()
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    lab, rest = lab_split()
    model = train(images[lab], y[lab])
    with torch.no_grad():
        predicted = model(torch.from_numpy(images)).argmax(1).numpy()
    print(f"lab part {np.mean(predicted[lab] == y[lab]):.4f}")
    print(f"never seen, undrifted {np.mean(predicted[rest] == y[rest]):.4f}")
    proto = to_onnx(model)
    (HERE / "digits.onnx").write_bytes(proto.SerializeToString())
    some = lab[:CALIBRATION_SAMPLES]
    np.savez_compressed(HERE / "calibration.npz", x=images[some], y=y[some])
    print(f"digits.onnx {proto.ByteSize()} bytes")


if __name__ == "__main__":
    main()
