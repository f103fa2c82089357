"""What a model is trained with: said by the model, by its labels, by the user, or asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.errors import CalibrationError, ModelError
from codegen.graph.floats import FloatTensorOutput, LossChoice
from codegen.importer.model import import_proto
from codegen.operators.lookup import Lookup
from codegen.program.lowering import lower
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.interpreter import Interpreter
from tests.codegen.dense_network import dense_network
from tests.codegen.onnxruntime_oracle import quantize_file, run
from tests.codegen.random_graphs import full_plan

CLASSES = np.arange(24) % 3
IMAGES = np.random.default_rng(2).normal(size=(24, 1, 4, 3)).astype(np.float32)
ROWS = np.random.default_rng(3).normal(size=(24, 3)).astype(np.float32)


def choice(
    model: onnx.ModelProto, folder: Path, loss: str | None = None, **arrays: NDArray
) -> LossChoice:
    """What is chosen with these arrays in the archive of samples."""
    samples = None
    if arrays:
        samples = folder / "samples.npz"
        np.savez(samples, **arrays)
    graph = import_proto(model, "net", loss, samples)  # type: ignore[arg-type]
    assert graph.loss_choice is not None
    assert graph.ending.loss == graph.loss_choice.loss
    return graph.loss_choice


@pytest.mark.parametrize("tail", ["Softmax", "LogSoftmax"])
def test_a_softmax_makes_a_classifier_whatever_the_sizes_and_labels(
    tail: str, tmp_path: Path
) -> None:
    made = choice(dense_network((3,), 3, tail), tmp_path, x=ROWS, y=ROWS[:, 0])
    assert (made.loss, made.because) == ("cross-entropy", "the model ends in a Softmax")
    assert not made.guessed


@pytest.mark.parametrize("labels", [
    CLASSES, CLASSES.astype(np.uint8), CLASSES[:, None], np.eye(3)[CLASSES],
    np.eye(3, dtype=np.int64)[CLASSES],
], ids=["int", "uint8", "column", "float rows", "integer rows"])  # fmt: skip
@pytest.mark.parametrize(("shape", "x"), [((3,), ROWS), ((1, 4, 3), IMAGES)])
def test_labels_that_are_classes_make_a_classifier(
    shape: tuple[int, ...], x: NDArray, labels: NDArray, tmp_path: Path
) -> None:
    made = choice(dense_network(shape, 3), tmp_path, x=x, y=labels)
    assert made.loss == "cross-entropy"
    assert not made.guessed
    assert "'y'" in made.because


@pytest.mark.parametrize(
    ("shape", "outputs", "form"),
    [((3,), 3, ()), ((1, 4, 3), 12, ()), ((1, 1, 3), 3, (1, 1, 3)), ((40,), 40, ())],
    ids=["vector", "flat picture", "row", "features"],
)
def test_as_many_outputs_as_inputs_without_softmax_are_asked_about(
    shape: tuple[int, ...], outputs: int, form: tuple[int, ...], tmp_path: Path
) -> None:
    model = dense_network(shape, outputs, form=form)
    x = np.zeros((24, *shape), np.float32)
    for arrays in ({}, {"x": x}):
        with pytest.raises(ModelError) as refused:
            choice(model, tmp_path, **arrays)
        for word in (
            "model 'net'", f"output '{model.graph.output[0].name}'", f"({outputs})",
            "--loss cross-entropy", "--loss mse",
        ):  # fmt: skip
            assert word in str(refused.value)
    for loss in ("cross-entropy", "mse"):
        assert choice(model, tmp_path, loss, x=x).loss == loss


def test_marks_of_few_kinds_beside_an_autoencoder_do_not_make_it_a_classifier(
    tmp_path: Path,
) -> None:
    anomalous = np.arange(24) % 2
    with pytest.raises(ModelError, match="classifier or an autoencoder"):
        choice(dense_network((12,), 12), tmp_path, x=np.zeros((24, 12), np.float32), y=anomalous)


def test_a_picture_that_becomes_a_picture_is_an_autoencoder(tmp_path: Path) -> None:
    model = dense_network((1, 4, 3), 12, form=(1, 4, 3))
    for arrays in ({}, {"x": IMAGES}, {"x": IMAGES, "y": CLASSES}, {"x": IMAGES, "y": IMAGES}):
        assert choice(model, tmp_path, **arrays).loss == "mse"


def test_labels_equal_to_the_inputs_make_an_autoencoder(tmp_path: Path) -> None:
    assert choice(dense_network((3,), 3), tmp_path, x=ROWS, y=ROWS).loss == "mse"


@pytest.mark.parametrize("y", [
    IMAGES[:, 0, 0, 0], CLASSES.astype(np.float32), CLASSES + 1, CLASSES - 1,
    np.stack([CLASSES] * 3, axis=1), IMAGES,
], ids=["one target", "whole floats", "from 1", "below 0", "rows", "too many"])  # fmt: skip
def test_labels_that_are_neither_classes_nor_targets_are_asked_about(
    y: NDArray, tmp_path: Path
) -> None:
    model = dense_network((1, 4, 3), 3)
    with pytest.raises(ModelError) as refused:
        choice(model, tmp_path, x=IMAGES, y=y)
    for word in ("model 'net'", "labels 'y'", str(list(y.shape)), "--loss cross-entropy",
                 "--loss binary", "--loss mse", "--loss none"):  # fmt: skip
        assert word in str(refused.value)
    # Said outright, the labels of the archive don't matter.
    for loss in ("cross-entropy", "binary", "none"):
        assert choice(model, tmp_path, loss, x=IMAGES, y=y).loss == loss


def test_classes_saved_as_floats_are_taken_as_the_message_says(tmp_path: Path) -> None:
    model = dense_network((1, 4, 3), 3)
    with pytest.raises(ModelError, match=r"but float32.*save integers: y\.astype"):
        choice(model, tmp_path, x=IMAGES, y=CLASSES.astype(np.float32))
    assert choice(model, tmp_path, x=IMAGES, y=CLASSES.astype(np.int64)).loss == "cross-entropy"


def test_classes_by_name_or_from_1_are_taken_as_the_message_says(tmp_path: Path) -> None:
    model = dense_network((1, 4, 3), 3)
    names = np.array(["cat", "dog", "hen"])[CLASSES]
    with pytest.raises(ModelError, match=r"words .*numpy\.unique\(y, return_inverse=True\)\[1\]"):
        choice(model, tmp_path, x=IMAGES, y=names)
    numbers = np.unique(names, return_inverse=True)[1]
    assert choice(model, tmp_path, x=IMAGES, y=numbers).loss == "cross-entropy"
    with pytest.raises(ModelError, match=r"from 1 to 3.*counted from 0: y - 1"):
        choice(model, tmp_path, x=IMAGES, y=CLASSES + 1)


@pytest.mark.parametrize(("shape", "outputs", "form", "x", "y"), [
    ((1, 4, 3), 2, (), IMAGES, IMAGES[:, 0, 0, :2]),
    ((1, 4, 3), 1, (), IMAGES, IMAGES[:, 0, 0, 0]),
    ((1, 4, 3), 1, (), IMAGES, IMAGES[:, 0, 0, :1]),
    ((3,), 3, (), ROWS, 2 * ROWS),
    ((1, 4, 3), 12, (1, 4, 3), IMAGES, 2 * IMAGES),
], ids=["two", "one", "a column", "as many as inputs", "denoiser"])  # fmt: skip
def test_real_numbers_for_each_output_are_targets_with_room_above_the_largest(
    shape: tuple[int, ...], outputs: int, form: tuple[int, ...], x: NDArray, y: NDArray,
    tmp_path: Path,
) -> None:  # fmt: skip
    for loss in (None, "mse"):
        made = choice(dense_network(shape, outputs, form=form), tmp_path, loss, x=x, y=y)
        assert made.loss == "mse"
        assert made.target_scale == pytest.approx(2 * np.abs(y).max() / 32767)


@pytest.mark.parametrize("y", [np.zeros((24, 2)), np.full((24, 2), np.nan)])
def test_targets_without_a_size_are_refused(y: NDArray, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="targets 'y' of the samples are"):
        choice(dense_network((1, 4, 3), 2), tmp_path, "mse", x=IMAGES, y=y)


@pytest.mark.parametrize(("outputs", "y"), [
    (1, CLASSES % 2), (1, CLASSES[:, None] == 1), (1, (CLASSES % 2).astype(np.float32)),
    (3, np.stack([CLASSES == 0, CLASSES > 0, CLASSES == 2], axis=1)),
])  # fmt: skip
def test_zeros_and_ones_for_each_output_are_answers_of_yes_or_no(
    outputs: int, y: NDArray, tmp_path: Path
) -> None:
    made = choice(dense_network((1, 4, 3), outputs), tmp_path, x=IMAGES, y=y)
    assert (made.loss, made.guessed) == ("binary", False)


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_sigmoid_at_the_end_belongs_to_the_loss(outputs: int, tmp_path: Path) -> None:
    model = dense_network((1, 4, 3), outputs, "Sigmoid", "Identity")
    assert choice(model, tmp_path).because == "the model ends in a Sigmoid"
    graph = import_proto(model, "net")
    assert len(graph.ops) == 2  # hidden and head
    with pytest.raises(ModelError, match="made by a Sigmoid, and --loss mse is not for such"):
        import_proto(model, "net", "mse")


def test_an_autoencoder_may_end_in_a_sigmoid(tmp_path: Path) -> None:
    model = dense_network((20,), 20, "Sigmoid")
    with pytest.raises(ModelError, match=r"is this an autoencoder.*--loss mse"):
        choice(model, tmp_path)
    graph = import_proto(model, "net", "mse")
    assert [type(op) for op in graph.ops[-2:]] == [Lookup, FloatTensorOutput]
    x = np.random.default_rng(5).normal(size=(24, 20)).astype(np.float32)
    assert choice(model, tmp_path, x=x, y=x).loss == "mse"
    with pytest.raises(ModelError, match=r"is this an autoencoder.*--loss mse"):
        choice(model, tmp_path, x=x, y=np.arange(24) % 20)
    with pytest.raises(ModelError, match=r"targets of its size; .*leave the labels out"):
        choice(model, tmp_path, x=x, y=2 * x)
    for loss in ("cross-entropy", "binary"):
        with pytest.raises(ModelError, match=f"--loss {loss} is not for such; it takes --loss mse"):
            choice(model, tmp_path, loss)


def test_seventeen_answers_are_more_than_a_label_has_bits_for(tmp_path: Path) -> None:
    assert choice(dense_network((3,), 16, "Sigmoid"), tmp_path).loss == "binary"
    with pytest.raises(ModelError, match="bits for 16"):
        choice(dense_network((3,), 17, "Sigmoid"), tmp_path)


def test_a_classifier_that_nothing_speaks_against_is_a_guess(tmp_path: Path) -> None:
    for arrays in ({}, {"x": IMAGES}):
        made = choice(dense_network((1, 4, 3), 3), tmp_path, **arrays)
        assert made.loss == "cross-entropy"
        assert made.guessed


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (dense_network((3,), 3, "Softmax"), "mse", "made by a Softmax"),
        (
            dense_network((1, 4, 3), 3),
            "mse",
            r"has 3 values.*the model's own input.*as floats 'y' \(samples, 3\)",
        ),
        (dense_network((1, 4, 3), 12, form=(1, 4, 3)), "cross-entropy", "4 x 3 values"),
    ],
    ids=["probabilities", "other size", "picture"],
)
def test_a_loss_that_does_not_fit_the_outputs_is_refused(
    model: onnx.ModelProto, loss: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        choice(model, tmp_path, loss)


def test_one_output_without_labels_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        choice(dense_network((1, 4, 3), 1), tmp_path)
    assert "--loss binary" in str(refused.value)
    assert "--loss mse" in str(refused.value)
    assert "--loss cross-entropy" not in str(refused.value)
    assert choice(dense_network((1, 4, 3), 1), tmp_path, "binary").loss == "binary"


def test_an_archive_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("nothing")
    with pytest.raises(CalibrationError, match=r"bad\.npz"):
        import_proto(dense_network((3,), 3), "net", None, tmp_path / "bad.npz")


def test_a_classifier_of_as_many_classes_as_inputs_learns_its_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 120)
    x = (np.eye(3)[(labels + 1) % 3] + random.normal(0, 0.15, (120, 3))).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x, y=labels)
    float_graph = import_proto(dense_network((3,), 3), "net", None, tmp_path / "samples.npz")
    graph = quantize(float_graph, x)
    codes = quantize_input(graph, x[:, None, None])
    interpreter = Interpreter(lower(graph, full_plan(graph)))

    def accuracy() -> float:
        return float(
            np.mean([interpreter.score(c, 0) == y for c, y in zip(codes, labels, strict=True)])
        )

    before = accuracy()
    for sample, label in zip(codes, labels, strict=True):
        interpreter.train_step(sample, int(label), 2**20 // 50, 1)
    assert before < 0.6
    assert accuracy() > 0.95


def test_a_sigmoid_at_the_end_of_a_quantized_model_belongs_to_the_loss(tmp_path: Path) -> None:
    onnx.save(dense_network((1, 4, 3), 2, "Sigmoid"), tmp_path / "float.onnx")
    quantize_file(tmp_path / "float.onnx", tmp_path / "net.onnx", IMAGES)
    model = onnx.load(tmp_path / "net.onnx")
    graph = import_proto(model, "net")
    assert (graph.head.loss, len(graph.ops)) == ("binary", 2)
    quantized = quantize(graph, None)
    interpreter = Interpreter(lower(quantized, full_plan(quantized)))
    logits = []
    for codes in quantize_input(quantized, IMAGES.reshape(24, 1, 1, 12)):
        interpreter.score(codes, 0)
        logits.append(interpreter.logits)
    chances = np.concatenate([run(model, image[None])[0] for image in IMAGES])
    found = 1 / (1 + np.exp(-np.array(logits) * logit_scale(quantized)))
    np.testing.assert_allclose(found, chances, atol=0.02)
