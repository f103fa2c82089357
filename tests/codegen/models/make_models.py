"""Writes the ONNX files of this folder with both of PyTorch's exporters.

Needs `pip install torch==2.13.0 onnxscript`; run it as `python -m tests.codegen.models.make_models`
from the root of the repository. Weights and the statistics of batch normalization begin at random
(seeded), so that folding them wrongly shows; those of classifiers are trained for some seconds, so
that they tell classes apart as other people's networks do. `NAME_dynamo.onnx` is the exporter that
traces with torch.export, `NAME_script.onnx` the older one that goes through TorchScript.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional

from tests.codegen.models.networks import NETWORKS
from tests.codegen.models.patterns import patterns

HERE = Path(__file__).parent
OPSETS = (17, 18, 20)
TRAINING_SAMPLES = 512
STEPS = 250
BATCH = 64
LEARNING_RATE = 0.01


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(20261121)
    module = make()
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.4, 2.0)
            nn.init.uniform_(part.weight, 0.6, 1.4)
            nn.init.normal_(part.bias, std=0.3)
        if isinstance(part, nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.6, 1.4)
            nn.init.normal_(part.bias, std=0.3)
    return module.eval()


def trained(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The classifier ``module`` after some epochs of `patterns`."""
    with torch.no_grad():
        classes = module(torch.zeros(1, *shape)).shape[1]
    samples, labels = map(torch.from_numpy, patterns(shape, classes, TRAINING_SAMPLES, seed=0))
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    module.train()
    for _ in range(STEPS):
        batch = torch.randint(len(samples), (BATCH,))
        optimizer.zero_grad()
        outputs = module(samples[batch])
        probabilities = bool((outputs >= 0).all())
        scores = outputs.log() if probabilities else outputs
        functional.cross_entropy(scores, labels[batch]).backward()
        optimizer.step()
    return module.eval()


def export(
    module: nn.Module, shape: tuple[int, ...], stem: Path, opset: int, dynamic: bool
) -> tuple[Path, Path]:
    """Writes ``stem``_dynamo.onnx and ``stem``_script.onnx and returns their paths.

    ``shape`` is that of a sample, without the batch; ``dynamic``: the dynamo file gets a symbolic
    batch (the TorchScript file has one always).
    """
    sample = torch.randn(1, *shape)
    common = {"input_names": ["input"], "output_names": ["output"]}
    script = stem.with_name(f"{stem.name}_script.onnx")
    torch.onnx.export(
        module,
        (sample,),
        str(script),
        dynamo=False,
        opset_version=min(opset, 20),
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        **common,  # type: ignore[arg-type]
    )
    dynamo = stem.with_name(f"{stem.name}_dynamo.onnx")
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        opset_version=max(opset, 18),
        dynamic_shapes=[{0: torch.export.Dim("batch")}] if dynamic else None,
        **common,  # type: ignore[arg-type]
    )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces: paths of the machine that exported
    for entry in [*model.graph.value_info, *model.graph.initializer]:
        del entry.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.save(model, str(dynamo))
    return dynamo, script


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # sums in one order
    for index, (name, (make, shape)) in enumerate(NETWORKS.items()):
        opset = OPSETS[index % len(OPSETS)]
        module = prepared(make)
        if not name.startswith("autoencoder"):
            module = trained(module, shape)
        export(module, shape, HERE / name, opset, dynamic=index % 2 == 0)


if __name__ == "__main__":
    main()
