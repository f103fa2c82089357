"""Samples: how arrays become codes, what is held out, and one clear error for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from codegen.errors import CalibrationError
from codegen.graph.ir import Graph
from codegen.importer.model import import_proto
from codegen.plan_search.samples import Samples, hold_out, load_samples
from codegen.quantization.calibration_set import fit_to_input
from codegen.quantization.quantize import quantize, quantize_input
from tests.codegen.importer.test_model import model, normal
from tests.codegen.random_graphs import random_graph


@pytest.fixture
def graph() -> Graph:
    return random_graph(0)[0]


def channels_first(graph: Graph, count: int) -> tuple[int, int, int, int]:
    height, width, channels = graph.tensors[graph.input].shape
    return count, channels, height, width


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def labels(graph: Graph, count: int) -> Any:
    return np.arange(count) % graph.head.bias.size


def test_floats_are_coded_as_by_the_quantizer(graph: Graph, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, channels_first(graph, 12)).astype(np.float32)
    samples = load_samples(save(tmp_path, x=x, y=labels(graph, 12)), graph)
    assert np.array_equal(samples.codes, quantize_input(graph, x.transpose(0, 2, 3, 1)))
    assert samples.labels.tolist() == labels(graph, 12).tolist()


def test_integers_are_codes_and_unsigned_ones_codes_plus_128(graph: Graph, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, channels_first(graph, 12))
    y = labels(graph, 12)
    signed = load_samples(save(tmp_path, x=codes.astype(np.int8), y=y), graph)
    unsigned = load_samples(save(tmp_path, x=(codes + 128).astype(np.uint8), y=y), graph)
    assert np.array_equal(signed.codes, codes.transpose(0, 2, 3, 1))
    assert np.array_equal(unsigned.codes, signed.codes)
    assert signed.digest == unsigned.digest


def test_what_does_not_fit_the_model_is_refused_with_the_remedy(
    graph: Graph, tmp_path: Path
) -> None:
    shape = channels_first(graph, 12)
    x, y = np.zeros(shape, np.float32), labels(graph, 12)
    classes = graph.head.bias.size
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"x": x}, r"no array 'y' \(it holds x\).*y=labels"),
        ({"y": y}, r"no array 'x'"),
        ({"x": x[:, :, 1:], "y": y}, r"x of shape .* needs \(samples, "),
        ({"x": x[0], "y": y}, r"x of shape"),
        ({"x": x, "y": y[1:]}, r"y of shape \(11,\) for 12 samples"),
        ({"x": x, "y": y.astype(float)}, r"y of float64; classes .*y\.astype\(numpy\.int64\)"),
        ({"x": x, "y": y.astype(str)}, r"y has words, as .*; give numbers of classes"),
        ({"x": x, "y": y + 1}, rf"y has class {classes}; the model's {classes} classes are 0 … "),
        ({"x": x, "y": y - 1}, r"y has class -1"),
        ({"x": x[:5], "y": y[:5]}, r"5 samples; at least 6"),
        ({"x": x[:0], "y": y[:0]}, r"0 samples; at least 6"),
        ({"x": x.reshape(12, -1), "y": y}, r"flattened: give x\.reshape\(-1, "),
        ({"x": x.astype(np.int32), "y": y}, r"x of int32; save labelled samples"),
        ({"x": np.full(shape, np.nan, np.float32), "y": y}, r"NaN or infinity"),
        ({"x": x, "y": y, "group": y[1:]}, r"group of shape \(11,\), int64, for 12 samples"),
        ({"x": x, "y": y, "group": y / 2}, r"group of shape \(12,\), float64"),
    ]
    for arrays, message in wrong:
        with pytest.raises(CalibrationError, match=message):
            load_samples(save(tmp_path, **arrays), graph)


def test_channels_that_come_last_are_recognized(tmp_path: Path) -> None:
    graph = next(g for g, _ in map(random_graph, range(9)) if g.tensors[g.input].shape[2] == 3)
    x = np.zeros((12, *graph.tensors[graph.input].shape), np.float32)
    remedy = r"channels stand last: give x.transpose\(0, 3, 1, 2\); with the ONNX file \(--model\)"
    with pytest.raises(CalibrationError, match=remedy):
        load_samples(save(tmp_path, x=x, y=labels(graph, 12)), graph)


def test_classes_from_1_are_refused_and_less_1_taken(graph: Graph, tmp_path: Path) -> None:
    x, y = np.zeros(channels_first(graph, 12), np.float32), labels(graph, 12) + 1
    y[:2] = 1, graph.head.bias.size
    with pytest.raises(CalibrationError, match=r"counted from 0: y - 1$"):
        load_samples(save(tmp_path, x=x, y=y), graph)
    assert np.array_equal(load_samples(save(tmp_path, x=x, y=y - 1), graph).labels, y - 1)


def test_samples_far_beyond_the_input_s_codes_are_refused(graph: Graph, tmp_path: Path) -> None:
    tensor = graph.tensors[graph.input]
    y, shape = labels(graph, 12), channels_first(graph, 12)
    codes = np.random.default_rng(4).integers(-128, 128, shape)
    x = (tensor.scale * (codes - tensor.zero_point)).astype(np.float32)
    with pytest.raises(CalibrationError, match=r"% of what isn't 0 is far beyond what.*int8"):
        load_samples(save(tmp_path, x=255 * x, y=y), graph)
    # A sensor that is twice as loud saturates, which is what a device makes of it.
    assert len(load_samples(save(tmp_path, x=2 * x, y=y), graph)) == 12
    assert len(load_samples(save(tmp_path, x=codes.astype(np.int8), y=y), graph)) == 12


def test_files_that_hold_no_arrays_are_refused(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no such file"):
        load_samples(tmp_path / "nothing.npz", graph)
    (tmp_path / "bad.npz").write_bytes(b"not a zip archive")
    with pytest.raises(CalibrationError, match=r"bad.npz: not an .npz; save"):
        load_samples(tmp_path / "bad.npz", graph)
    content = bytearray(save(tmp_path, x=np.zeros((6, 3)), y=np.zeros(6)).read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "cracked.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"cracked.npz: not a readable .npz file"):
        load_samples(tmp_path / "cracked.npz", graph)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match=r"not an .npz"):
        load_samples(tmp_path / "one.npy", graph)


def test_a_third_of_each_class_is_held_out_as_the_seed_says() -> None:
    classes = np.repeat(np.arange(3), [30, 12, 1])
    samples = Samples(np.arange(43, dtype=np.int8).reshape(43, 1, 1, 1), classes)
    training, held = hold_out(samples, 1)
    assert np.bincount(held.labels, minlength=3).tolist() == [10, 4, 0]
    both = np.concatenate([training.codes, held.codes]).ravel()
    assert sorted(both.tolist()) == list(range(43))
    again, other = hold_out(samples, 1)[1], hold_out(samples, 2)[1]
    assert again.digest == held.digest != other.digest


def test_something_is_held_out_even_of_one_sample_per_class() -> None:
    samples = Samples(np.zeros((4, 1, 1, 1), np.int8), np.arange(4))
    training, held = hold_out(samples, 1)
    assert (len(training), len(held)) == (3, 1)


def test_groups_are_held_out_whole(graph: Graph, tmp_path: Path) -> None:
    count = 60
    people = np.array(["ada", "bo", "cy", "di", "eve", "fay", "gus", "hal", "ida", "jo"])
    group = np.random.default_rng(3).choice(people, count)
    # Codes that tell the sample, so that it is known on either side.
    x = np.zeros(channels_first(graph, count), np.int8)
    x[:, 0, 0, 0] = np.arange(count)
    samples = load_samples(save(tmp_path, x=x, y=labels(graph, count), group=group), graph)
    for seed in range(5):
        training, held = hold_out(samples, seed)
        trained, scored = training.codes[:, 0, 0, 0], held.codes[:, 0, 0, 0]
        assert sorted([*trained, *scored]) == list(range(count))
        assert set(group[scored])
        assert not set(group[scored]) & set(group[trained])
        share = np.bincount(held.labels) / np.bincount(samples.labels)[: held.labels.max() + 1]
        assert share.max() <= 0.4  # rounded thirds of small classes
        assert set(training.labels) == set(samples.labels)


@pytest.mark.parametrize("sizes", [(40, 40, 40), (41, 39, 40), (60, 60)])
def test_one_of_two_or_three_large_groups_is_held_out(sizes: tuple[int, ...]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    samples = Samples(np.zeros((120, 1, 1, 1), np.int8), np.arange(120) % 4, groups)
    for seed in range(3):
        training, held = hold_out(samples, seed)
        assert training.groups is not None
        assert held.groups is not None
        assert len(set(held.groups)) == 1
        assert not set(held.groups) & set(training.groups)
        assert set(training.labels) == set(held.labels) == {0, 1, 2, 3}


def test_a_group_with_most_of_a_class_cannot_be_held_out_whole() -> None:
    codes = np.zeros((12, 1, 1, 1), np.int8)
    one = Samples(codes, np.arange(12) % 2, np.zeros(12, np.int64))
    with pytest.raises(CalibrationError, match=r"each of the 1 groups has more than half of a"):
        hold_out(one, 1)
    # Each speaker says a word of its own.
    words = Samples(codes, np.arange(12) % 3, np.arange(12) % 3)
    with pytest.raises(CalibrationError, match=r"each of the 3 groups has more than half of a"):
        hold_out(words, 1)


def test_shapes_of_the_model_file_and_of_the_device_are_both_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "hw", "hb"], ["logits"], "head", transB=1),
    ]
    constants = {"w": normal(8, 4, 3), "hw": normal(3, 8 * 22), "hb": normal(3)}
    source = import_proto(model(nodes, constants, shape=("n", 4, 24)))
    x, y = normal(12, 4, 24), np.arange(12) % 3
    graph = quantize(source, source.arrange(x))
    assert load_samples(save(tmp_path, x=x, y=y), graph, source).codes.shape == (12, 1, 24, 4)
    both = r"\(samples, 4, 24\), as the model file has it, or \(samples, 4, 1, 24\) = \(samples, ch"
    with pytest.raises(CalibrationError, match=both):
        load_samples(save(tmp_path, x=x[:, :3], y=y), graph, source)
    with pytest.raises(CalibrationError, match=both):
        fit_to_input(source, x[:, :3])
    with pytest.raises(CalibrationError, match=rf"a float model needs a calibration set, {both}"):
        fit_to_input(source, None)
