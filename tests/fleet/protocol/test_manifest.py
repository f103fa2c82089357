from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from codegen.graph.ir import Loss, label_count
from codegen.program.row_pairs import Order, pack_rows, stored_bytes
from fleet.errors import ManifestError
from fleet.protocol import Manifest
from fleet.protocol.manifest import InputEntry, ModelEntry, TensorEntry


def manifest() -> dict[str, Any]:
    def tensor(name: str, kind: str, dtype: str, shape: list[int], offset: int) -> dict[str, Any]:
        return {
            "name": name,
            "layer": name,
            "kind": kind,
            "dtype": dtype,
            "shape": shape,
            "offset": offset,
            "limit": 127,
            "step": [0.5],
        }

    def segment(tensor: str, start: int, count: int, values: int, shift: int) -> dict[str, Any]:
        return {
            "tensor": tensor,
            "channels": [[start, count]],
            "values": values,
            "shift": shift,
        }

    return {
        "format": "tinyfleet-manifest/2",
        "bundle_id": "0" * 64,
        "model": {
            "name": "m",
            "digest": "d" * 64,
            "onnx_sha256": "1" * 64,
            "classes": 2,
            "parameters": 1000,
            "input": {"shape": [8, 8, 1], "scale": 0.1, "zero_point": 0},
        },
        "board": {"name": "stm32f746"},
        "compiler": "gcc",
        "weights": {"bytes": 64, "sha256": "2" * 64, "file": "weights.bin"},
        "tensors": [
            tensor("conv", "weight", "int8", [2, 1, 3, 4], 0),
            tensor("conv.bias", "bias", "int32", [2], 24),
            tensor("head", "weight", "int16", [3, 5], 32),
        ],
        "coordinates": 24 + 2 + 15,
        "plans": [
            {
                "id": "a" * 64,
                "name": "middle",
                "plan": {},
                "delta_values": 2 + 12 + 15,
                "pool_bytes": 1000,
                "segments": [
                    segment("conv.bias", 0, 2, 2, 3),
                    segment("conv", 1, 2, 12, 2),
                    segment("head", 0, 5, 15, 0),
                ],
            }
        ],
        "flash": {},
        "files": {},
    }


def test_coordinates_are_those_of_an_array_of_all_coordinates_cut_by_the_segments() -> None:
    found = Manifest.parse(json.dumps(manifest()))
    plan = found.plan("middle")
    conv = np.arange(24).reshape(2, 1, 3, 4)
    expected = np.concatenate([24 + np.arange(2), conv[..., 1:3].ravel(), 26 + np.arange(15)])
    assert np.array_equal(found.plan_coordinates(plan), expected)
    assert len(set(expected.tolist())) == plan.delta_values


def test_a_unit_of_a_delta_is_two_to_the_shift_of_the_state() -> None:
    found = Manifest.parse(json.dumps(manifest()))
    steps = found.steps_per_unit(found.plan("a" * 64))
    assert steps.tolist() == [8.0] * 2 + [4 / 256] * 12 + [1.0] * 15


def test_a_bound_is_the_largest_change_of_a_state_rounded_up() -> None:
    found = Manifest.parse(json.dumps(manifest()))
    plan = found.plan("middle")
    bounds = found.value_bounds(plan)
    assert [count for count, _ in bounds] == [2, 12, 15]
    # By trying both ends of the change with every rounding (arithmetic.md, Delta).
    for (_, bound), segment, unit in zip(bounds, plan.segments, [1, 256, 1], strict=True):
        change = 2 * 127 * unit
        sent = [
            (end + r) >> segment.shift
            for end in (change, -change)
            for r in range(1 << segment.shift)
        ]
        assert max(sent) == bound
        assert min(sent) == -bound


def test_an_unknown_plan_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ManifestError, match=r"no plan 'large'.*middle \(aaaaaaaa\)"):
        Manifest.parse(json.dumps(manifest())).plan("large")


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("apply", "problem"),
    [
        (change("format", to="tinyfleet-manifest/1"), "format"),
        (change("coordinates", to=40), "40 coordinates"),
        (change("model", "digest", to="d" * 8), "model.digest"),
        (change("tensors", 1, "offset", to=20), "overlap"),
        (change("weights", "bytes", to=60), "beyond the end of the blob"),
        (change("tensors", 1, "name", to="conv"), "two tensors"),
        (change("plans", 0, "segments", 0, "tensor", to="x"), "names no tensor: x"),
        (change("plans", 0, "segments", 1, "channels", to=[[3, 2]]), "beyond the end of conv"),
        (change("plans", 0, "segments", 1, "channels", to=[[1, 1], [0, 1]]), "out of order"),
        (change("plans", 0, "segments", 1, "channels", to=[]), "channels"),
        (change("tensors", 0, "order", to="columns"), "tensors.0.order"),
        (change("plans", 0, "segments", 1, "values", to=11), "miscounts"),
        (change("plans", 0, "delta_values", to=30), "add up to delta_values"),
        (change("plans", 0, "id", to="xyz"), "plans.0.id"),
        (change("tensors", 0, "dtype", to="float32"), "tensors.0.dtype"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_by_name(
    apply: Callable[[dict[str, Any]], None], problem: str
) -> None:
    data = manifest()
    apply(data)
    with pytest.raises(ManifestError, match=problem):
        Manifest.parse(json.dumps(data))


def test_a_folder_without_a_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="tinyfleet compile"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="isn't JSON"):
        Manifest.read(tmp_path)


def entry(order: Order, shape: Sequence[int], dtype: str) -> TensorEntry:
    return TensorEntry.model_validate(
        {**manifest()["tensors"][0], "shape": shape, "dtype": dtype, "order": order}
    )


@pytest.mark.parametrize("inputs", range(1, 6))
@pytest.mark.parametrize("outputs", range(1, 6))
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 2)])
def test_values_of_row_pairs_lie_where_the_compiler_puts_them(
    outputs: int, kernel: tuple[int, int], inputs: int
) -> None:
    shape = (outputs, *kernel, inputs)
    values = np.arange(1, np.prod(shape) + 1).astype(np.int8)
    tensor = entry("row-pairs", shape, "int8")
    packed = pack_rows(values.reshape(outputs, -1))
    assert tensor.bytes == packed.size == stored_bytes("row-pairs", shape, 1)
    assert np.array_equal(packed[tensor.place_of_values()], values)
    filled_up = np.delete(packed, tensor.place_of_values())
    assert not filled_up.any()


@pytest.mark.parametrize(("dtype", "size"), [("int8", 1), ("int16", 2), ("int32", 4)])
def test_a_plain_tensor_has_the_size_that_the_compiler_gives_it(dtype: str, size: int) -> None:
    tensor = entry("plain", (3, 5), dtype)
    assert tensor.bytes == stored_bytes("plain", (3, 5), size)
    assert np.array_equal(tensor.place_of_values(), np.arange(15))


@pytest.mark.parametrize("loss", get_args(Loss))
def test_labels_are_as_many_as_the_compiler_says(loss: Loss) -> None:
    model = ModelEntry(
        name="m",
        digest="d" * 64,
        onnx_sha256="1" * 64,
        input=InputEntry(shape=(8, 8, 1), scale=0.1, zero_point=0),
        classes=5,
        parameters=1000,
        loss=loss,
    )
    assert model.labels == label_count(loss, model.classes)
