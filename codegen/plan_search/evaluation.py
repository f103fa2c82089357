"""A bundle on labelled samples of the user's own: how good it is, and what training makes of it.

The engine of the device runs as a host library, with its very bits.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.compile import build_host_engine
from codegen.errors import ModelError, PlanError
from codegen.firmware.bundle import Bundle, PlanInfo
from codegen.firmware.graph_file import load_graph
from codegen.firmware.host_engine import HostEngine
from codegen.graph.floats import FloatGraph, loss_of
from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.importer.model import import_model
from codegen.operators.execution import evaluate
from codegen.plan_search.samples import HELD_OUT_SHARE, Samples, hold_out, load_samples
from codegen.plan_search.training import Schedule, train

_BATCH = 32


@dataclass(frozen=True)
class Figures:
    """How good outputs are; what a loss has no word for is None.

    ``loss`` is the mean, in the unit of `codegen.graph.ir.LOSS_UNITS`. ``accuracy`` is the share of
    samples that are right, with several answers of yes or no in all of them. ``confusion`` counts
    samples by what they are (rows) and what the model takes them for (columns): one table of
    classes, or one of no and yes for each output. ``mean_absolute_error`` is that of the targets,
    in their unit, ``explained`` the part of their variance that the outputs tell (1 is all of it).
    ``agreement`` is the share of samples on which the float model says the same.
    """

    samples: int
    loss: float | None
    accuracy: float | None = None
    confusion: list[list[list[int]]] | None = None
    mean_absolute_error: float | None = None
    explained: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_bundle` finds on held-out samples, or on all where nothing is trained."""

    bundle: str
    plan: str
    loss: str
    epochs: int
    learning_rate: float
    trained_samples: int
    before: Figures
    after: Figures | None
    float_model: Figures | None

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)


def evaluate_bundle(
    bundle: Bundle,
    plan: PlanInfo,
    data: Path | str,
    schedule: Schedule,
    model: Path | str | None = None,
    held_out_share: float = HELD_OUT_SHARE,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores ``bundle`` on the samples of the .npz ``data``, and again after training ``plan``.

    With 0 epochs nothing is trained or held out. ``model`` is the ONNX file that the bundle was
    made from: it is compared with, and tells how the file shapes its samples.

    Raises CalibrationError for samples that don't fit, ModelError for another file than the
    bundle's, PlanError where there is nothing to train.
    """
    tell: Progress = progress or (lambda stage, done, of: None)
    graph, _ = load_graph(bundle)
    if schedule.epochs and not plan.delta_values:
        raise PlanError(
            f"plan {plan.name} of {bundle.path} trains nothing: the bundle was compiled with "
            "--loss none; leave out --epochs, or compile it with another loss"
        )
    source = None if model is None else _float_model(bundle, graph, model)
    samples = load_samples(data, graph, source)
    training, scored = samples, samples
    if schedule.epochs:
        training, scored = hold_out(samples, schedule.seed, held_out_share)
    exact = None if source is None else _float_outputs(source, graph, scored)
    with tempfile.TemporaryDirectory(prefix="tinyfleet-measure-") as folder:
        library = build_host_engine(bundle, Path(folder) / "engine.so", progress=tell)
        engine = HostEngine(library, plan.id)
        before = _scored(engine, graph, scored, exact, tell)
        after = None
        if schedule.epochs:
            tell("training", 0, 1)
            train(engine, training, schedule)
            tell("training", 1, 1)
            after = _scored(engine, graph, scored, exact, tell)
    return Evaluation(
        bundle=str(bundle.path),
        plan=plan.name,
        loss=graph.ending.loss,
        epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        trained_samples=len(training) if schedule.epochs else 0,
        before=before,
        after=after,
        float_model=None
        if exact is None
        else figures(graph, exact, scored, _inputs(graph, scored).reshape(len(scored), -1)),
    )


def figures(
    graph: Graph,
    outputs: NDArray[np.float64],
    samples: Samples,
    inputs: NDArray[np.float64] | None = None,
) -> Figures:
    """How good real ``outputs`` (n, outputs) of ``graph`` are for ``samples``.

    ``inputs`` (n, values) are what a reconstruction is compared with; without them, the codes.
    """
    count, labels = len(samples), samples.labels
    if graph.ending.loss == "cross-entropy":
        below = outputs - outputs.max(axis=1, keepdims=True)
        picked = below[np.arange(count), labels]
        losses = np.log(np.exp(below).sum(axis=1)) - picked
        predicted = outputs.argmax(axis=1)
        tables = [_confusion(labels, predicted, outputs.shape[1])]
        return Figures(count, float(losses.mean()), float((predicted == labels).mean()), tables)
    if graph.ending.loss == "binary":
        truth = labels[:, np.newaxis] >> np.arange(outputs.shape[1]) & 1
        losses = np.logaddexp(0.0, np.where(truth == 1, -outputs, outputs))
        answers = (outputs >= 0).astype(np.int64)
        tables = [_confusion(*pair, 2) for pair in zip(truth.T, answers.T, strict=True)]
        right = float((answers == truth).all(axis=1).mean())
        return Figures(count, float(losses.mean()), right, tables)
    if graph.ending.loss == "none":
        return Figures(count, None)
    reconstructs = graph.ending.target_scale is None
    wanted = inputs if reconstructs and inputs is not None else _wanted(graph, samples)
    error = outputs - wanted
    variance = float(((wanted - wanted.mean(axis=0)) ** 2).mean())
    mean_square = float((error**2).mean())
    return Figures(
        count,
        mean_square,
        mean_absolute_error=float(np.abs(error).mean()),
        explained=1.0 - mean_square / variance if variance > 0 else None,
    )


def _confusion(truth: NDArray[np.int64], found: NDArray[np.int64], classes: int) -> list[list[int]]:
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, found), 1)
    rows: list[list[int]] = table.tolist()
    return rows


def _wanted(graph: Graph, samples: Samples) -> NDArray[np.float64]:
    """Real targets (n, outputs)."""
    source, ending = graph.tensors[graph.input], graph.ending
    flat = samples.codes.reshape(len(samples), -1)
    if ending.target_scale is None:
        return source.scale * (flat.astype(np.float64) - source.zero_point)
    targets = np.ascontiguousarray(flat[:, source.size :]).view("<i2")
    return ending.target_scale * targets.astype(np.float64)


def _scored(
    engine: HostEngine,
    graph: Graph,
    samples: Samples,
    exact: NDArray[np.float64] | None,
    tell: Progress,
) -> Figures:
    outputs = np.empty((len(samples), graph.ending.outputs))
    tell("scoring", 0, len(samples))
    for index, (codes, label) in enumerate(zip(samples.codes, samples.labels, strict=True)):
        engine.score(codes, int(label))
        outputs[index] = engine.logits * logit_scale(graph)
    tell("scoring", len(samples), len(samples))
    found = figures(graph, outputs, samples)
    if exact is None or graph.ending.loss not in ("cross-entropy", "binary"):
        return found
    return replace(found, agreement=_agreement(graph, outputs, exact))


def _agreement(graph: Graph, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if graph.ending.loss == "binary":
        return float(((a >= 0) == (b >= 0)).all(axis=1).mean())
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def _float_model(bundle: Bundle, graph: Graph, model: Path | str) -> FloatGraph:
    manifest = bundle.manifest.model
    if hashlib.sha256(Path(model).read_bytes()).hexdigest() != manifest.onnx_sha256:
        raise ModelError(
            f"{model} isn't the file that {bundle.path} was compiled from; give that one, or "
            "compile this one"
        )
    output = bundle.report.loss.output or None
    return import_model(model, loss_of(graph.ending), output=output)


def _inputs(graph: Graph, samples: Samples) -> NDArray[np.float64]:
    """Inputs (n, height, width, channels) as they were given, or what given codes stand for."""
    if samples.reals is not None:
        return samples.reals.transpose(0, 2, 3, 1).astype(np.float64)
    tensor = graph.tensors[graph.input]
    flat = samples.codes.reshape(len(samples), -1)[:, : tensor.size].astype(np.float64)
    return (tensor.scale * (flat - tensor.zero_point)).reshape(-1, *tensor.shape)


def _float_outputs(source: FloatGraph, graph: Graph, samples: Samples) -> NDArray[np.float64]:
    """Real outputs (n, outputs) of the float model, in the device's order.

    It gets what the user gave, not the codes made of it, so that what saturates there shows.
    """
    x = _inputs(graph, samples).transpose(0, 3, 1, 2)
    output = source.ending.output
    parts = [evaluate(source, x[at : at + _BATCH])[output] for at in range(0, len(x), _BATCH)]
    outputs: NDArray[np.float64] = np.concatenate(parts)[:, source.output_order]
    return outputs
