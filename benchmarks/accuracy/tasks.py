"""Data sets with their networks and plans: what is trained on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accuracy import samples, small_networks
from benchmarks.accuracy.heads import with_fresh_head
from benchmarks.accuracy.samples import Samples
from benchmarks.accuracy.training import Schedule
from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.importer.model import import_model
from codegen.program.plans import LastLayers, PlanSpec, WeightSpec, load_plan
from codegen.quantization.quantize import quantize

MODELS = "models"
PUBLISHED = ("49kb", "74kb", "99kb", "124kb", "148kb")
"""Plans of MCUNet's authors."""
SEARCHED = ("searched", "single-run")
FOUND = Path(__file__).with_name("flowers96_plans.json")
"""What `tinyfleet plan` found for 256 KB with the training photos (docs/results/accuracy.md)."""


@dataclass(frozen=True)
class Task:
    """A data set, its network for a seed, and the plans that there are by name."""

    name: str
    title: str
    prepare: Callable[[int], tuple[Graph, dict[str, Samples]]]
    """Seed → graph with the head to start from, and samples by whose they are."""
    plans: Callable[[Graph], Mapping[str, PlanSpec]]
    default_plans: tuple[str, ...]
    schedule: Schedule = field(default_factory=Schedule)


def _mcunet(load: Callable[[], Samples]) -> Callable[[int], tuple[Graph, dict[str, Samples]]]:
    def prepare(seed: int) -> tuple[Graph, dict[str, Samples]]:
        float_graph = import_model(_shared_model("mcunet-5fps-head10-int8.onnx"))
        return quantize(with_fresh_head(float_graph, seed), None), {"photos": load()}

    return prepare


def _shared_model(name: str) -> Path:
    return samples.shared_folder() / MODELS / name


def _mcunet_plans(graph: Graph) -> dict[str, PlanSpec]:
    file = _shared_model("mcunet-5fps-plans.json")
    return {
        "head": PlanSpec(name="head"),
        "bias": PlanSpec(name="bias", biases=LastLayers(last=22)),
        **{name: load_plan(f"{file}#{name}") for name in PUBLISHED},
        **{name: load_plan(f"{FOUND}#{name}") for name in SEARCHED},
        "pointwise": PlanSpec(
            name="pointwise",
            biases=LastLayers(last=22),
            weights=[WeightSpec(layer=op.name) for op in _first_pointwise(graph)[-7:]],
        ),
        "last12": last_layers("last12", graph, 12),
        "full": last_layers("full", graph, len(graph.convolutions)),
    }


def _first_pointwise(graph: Graph) -> list[Conv]:
    """The layers that widen a block of MCUNet for its depthwise convolution."""
    pairs = zip(graph.convolutions, graph.convolutions[1:], strict=False)
    return [op for op, then in pairs if isinstance(op, Conv) and isinstance(then, DepthwiseConv)]


def _small_plans(graph: Graph) -> dict[str, PlanSpec]:
    """Plans for small networks: the sparse one trains all biases and the late pointwise weights."""
    count = len(graph.convolutions)
    pointwise = [
        op.name
        for op in graph.convolutions
        if isinstance(op, Conv) and op.weight.shape[1:3] == (1, 1)
    ]
    weights = [WeightSpec(layer=name) for name in pointwise[-2:]]
    return {
        "head": PlanSpec(name="head"),
        "bias": PlanSpec(name="bias", biases=LastLayers(last=count)),
        "sparse": PlanSpec(name="sparse", biases=LastLayers(last=count), weights=weights),
        "full": last_layers("full", graph, count),
    }


def last_layers(name: str, graph: Graph, count: int) -> PlanSpec:
    """Weights and biases of the last ``count`` convolutions, and the head."""
    layers = graph.convolutions[len(graph.convolutions) - count :]
    weights = [WeightSpec(layer=op.name) for op in layers]
    return PlanSpec(name=name, biases=LastLayers(last=count), weights=weights)


TASKS = {
    task.name: task
    for task in (
        Task(
            "flowers96",
            "5 flowers, 500 photos, unseen photographers (MCUNet-5FPS, fresh head)",
            _mcunet(samples.flowers96),
            _mcunet_plans,
            ("head", "bias", "49kb", "99kb", "148kb"),
        ),
        Task(
            "cifar10_sub",
            "CIFAR-10, 500 images for training and 2,000 for tests (MCUNet-5FPS, fresh head)",
            _mcunet(samples.cifar10_sub),
            _mcunet_plans,
            ("head", "bias", "49kb", "99kb", "148kb"),
        ),
        Task(
            "har_uci_hapt",
            "activities of 9 unseen people who wear the sensor turned (1-D CNN, own head)",
            small_networks.activity,
            _small_plans,
            ("head", "bias", "sparse", "full"),
            # 150 samples a person: smaller batches, so that there are as many steps.
            Schedule(batch=8),
        ),
        Task(
            "kws_arabic_mfcc",
            "10 new keywords of unseen speakers (DS-CNN, fresh head)",
            small_networks.keywords,
            _small_plans,
            ("head", "bias", "sparse", "full"),
        ),
    )
}
