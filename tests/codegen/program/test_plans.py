"""Plans: what a file may say, what it means for a model, and clear errors for the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codegen.errors import PlanError
from codegen.graph.ir import Conv, Graph
from codegen.importer.model import import_model
from codegen.program.plans import (
    PlanSpec,
    WeightUpdate,
    default_plans,
    load_plan,
    parameter_count,
    resolve,
)
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize
from tests.codegen import mcunet

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = import_model(DIGITS / "digits.onnx")
    return quantize(model, load_calibration(DIGITS / "calibration.npz"))


def spec(**fields: Any) -> PlanSpec:
    return PlanSpec.model_validate(fields)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], str]:
    def to_file(content: Any) -> str:
        file = tmp_path / "plan.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return to_file


def test_the_last_k_biases_are_spelt_out_in_execution_order(graph: Graph) -> None:
    order = tuple(op.name for op in graph.convolutions)
    assert resolve(spec(biases={"last": 4}), graph).biases == order[-4:]
    assert resolve(spec(biases={"last": 0}), graph).biases == ()
    shuffled = [order[5], order[0], order[3]]
    assert resolve(spec(biases=shuffled), graph).biases == (order[0], order[3], order[5])


def test_weights_are_sorted_into_execution_order_and_ranges_become_numbers(graph: Graph) -> None:
    first, *_, last = graph.convolutions
    channels = last.weight.shape[-1]
    plan = resolve(
        spec(weights=[{"layer": last.name, "start": 3}, {"layer": first.name, "count": "all"}]),
        graph,
    )
    assert plan.weights == (
        WeightUpdate(first.name, tuple(range(first.weight.shape[-1]))),
        WeightUpdate(last.name, tuple(range(3, channels))),
    )


def test_the_id_is_the_digest_of_what_is_trained_and_not_of_how_it_was_written(
    graph: Graph,
) -> None:
    names = [op.name for op in graph.convolutions][-2:]
    short = resolve(spec(name="a", biases={"last": 2}), graph)
    long = resolve(spec(name="b", biases=names[::-1], state="q8.8", accumulate=1), graph)
    assert short.id == long.id
    text = json.dumps(short.canonical(), sort_keys=True, separators=(",", ":"))
    assert short.id == hashlib.sha256(text.encode()).hexdigest()
    assert "name" not in short.canonical()
    others = [
        resolve(spec(biases={"last": 2}, head=False), graph),
        resolve(spec(biases={"last": 2}, state="int8-stochastic"), graph),
        resolve(spec(biases={"last": 3}), graph),
    ]
    assert len({short.id, *(plan.id for plan in others)}) == 4


def test_a_canonical_plan_resolves_to_itself(graph: Graph) -> None:
    for plan in default_plans(graph):
        assert resolve(PlanSpec.model_validate(plan.canonical()), graph).id == plan.id


@pytest.mark.parametrize("convolutions", [0, 1, 2])
def test_default_plans_of_very_small_models_are_never_equal(
    graph: Graph, convolutions: int
) -> None:
    """With few layers the middle plan has no room for weights and the biases of all of them."""
    kept = graph.convolutions[:convolutions]
    dropped = {op.name for op in graph.convolutions} - {op.name for op in kept}
    tiny = dataclasses.replace(graph, ops=tuple(op for op in graph.ops if op.name not in dropped))
    plans = default_plans(tiny)
    assert len({plan.id for plan in plans}) == len(plans) == max(1, min(convolutions + 1, 3))
    assert plans[0].name == "small"
    if convolutions:
        assert plans[-1].name == "full"


def test_default_plans_grow_and_the_middle_one_fits_the_uplink(graph: Graph) -> None:
    small, middle, full = default_plans(graph)

    def values(plan: Any) -> int:
        layers = {op.name: op for op in graph.convolutions}
        total = sum(layers[name].bias.size for name in plan.biases)
        for item in plan.weights:
            weight = layers[item.layer].weight
            total += weight.size // weight.shape[-1] * item.count
        return total + graph.head.weight.size + graph.head.bias.size

    assert values(small) < values(middle) < values(full) == parameter_count(graph)
    assert 0.055 <= values(middle) / parameter_count(graph) <= 0.065
    pointwise = {
        op.name
        for op in graph.convolutions
        if isinstance(op, Conv) and op.weight.shape[1:3] == (1, 1)
    }
    assert middle.weights
    assert {item.layer for item in middle.weights} <= pointwise
    assert set(small.biases) < set(middle.biases) < set(full.biases)


def test_a_layer_that_is_not_there_is_named_with_the_nearest_one(graph: Graph) -> None:
    with pytest.raises(PlanError, match=r"no layer 'b4_pw3' \(did you mean 'b4_pw[12]'\?\)"):
        resolve(spec(weights=[{"layer": "b4_pw3"}]), graph)
    with pytest.raises(PlanError, match=r"no layer 'b4-dw' \(did you mean 'b4_dw'\?\)"):
        resolve(spec(biases=["b4-dw"]), graph)
    with pytest.raises(PlanError, match=r"'head' is the head"):
        resolve(spec(biases=["head"]), graph)


@pytest.mark.parametrize(
    ("start", "count"), [(0, 145), (144, 1), (100, 45), (0, 0), (0, -1), (200, "all")]
)
def test_a_range_beyond_the_channels_is_refused_with_the_bounds(
    graph: Graph, start: int, count: Any
) -> None:
    with pytest.raises(PlanError, match=r"'b4_pw2' has channels 0 … 143"):
        resolve(spec(weights=[{"layer": "b4_pw2", "start": start, "count": count}]), graph)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, r"'hinge' isn't supported; that of this model is 'cross-entropy'"),
        ({"biases": {"last": 99}}, r"last 99.*has 14 convolutions"),
        ({"head": False}, r"trains nothing"),
        ({"biases": ["stem", "stem"]}, r"layer 'stem' twice"),
        ({"weights": [{"layer": "stem"}, {"layer": "stem"}]}, r"layer 'stem' twice"),
    ],
)
def test_what_is_not_supported_is_refused(
    graph: Graph, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        resolve(spec(**fields), graph)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"biasses": []}, r"biasses: unknown key \(did you mean 'biases'\?\)"),
        ({"state": "float"}, r"state: Input should be 'q8.8', 'int8-stochastic' or 'auto'"),
        ({"weights": [{"layer": "x", "start": -1}]}, r"weights\.0\.start"),
        ({"weights": [{"layer": "x", "stop": 3}]}, r"weights\.0\.stop: unknown key"),
        ({"format": "tinyfleet-plan/9"}, r"format: .*tinyfleet-plan/1"),
        ({"biases": {"last": "many"}}, r"biases\.last"),
        ([1, 2], r"holds no plan"),
        ("{broken", r"no JSON"),
        ({"plans": {}}, r"a file of several plans"),
        ({"plans": {"a": {}}, "other": 1}, r"unknown key 'other'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_the_place(
    write: Callable[[Any], str], content: Any, message: str
) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        load_plan(write(content))
    assert "plan.json" in str(caught.value)


def test_one_of_several_plans_is_picked_by_name(write: Callable[[Any], str]) -> None:
    file = write({"plans": {"tiny": {"head": True}, "wide": {"biases": {"last": 2}}}})
    assert load_plan(f"{file}#wide").name == "wide"
    with pytest.raises(PlanError, match=r"several plans \(tiny, wide\)"):
        load_plan(file)
    with pytest.raises(PlanError, match=r"no plan 'wild' \(did you mean 'wide'\?\)"):
        load_plan(f"{file}#wild")


def test_a_default_plan_or_json_in_the_place_of_a_file_is_told_what_to_do() -> None:
    with pytest.raises(PlanError, match=r"plan file small .*small, middle, full.* where no --plan"):
        load_plan("small")
    with pytest.raises(PlanError, match="a plan is given as a file: save this JSON"):
        load_plan('{"biases": {"last": 1}}')


def test_a_missing_file_and_a_needless_name_are_named(
    write: Callable[[Any], str], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"nothing\.json can't be read: No such file"):
        load_plan(str(tmp_path / "nothing.json"))
    with pytest.raises(PlanError, match=r"holds one plan.*'#x'"):
        load_plan(write({"head": True}) + "#x")


@mcunet.needs_mcunet
def test_published_plans_become_plans_of_the_same_layers_and_channels() -> None:
    graph = mcunet.graph()
    expected = json.loads(mcunet.PLANS.read_text())["plans"]["49kb"]
    plan = mcunet.plan("49kb")
    assert list(plan.biases) == expected["bias_layers"]
    assert {w.layer: list(w.channels) for w in plan.weights} == {
        item["layer"]: item["kept_index"] for item in expected["weight_layers"] if item["kept"]
    }
    assert plan.head
    assert resolve(PlanSpec.model_validate(plan.canonical()), graph).id == plan.id


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], "empty list of channels"),
        ([1, 1], "names a channel twice"),
        ([[0, 3], 2], "names a channel twice"),
        ([99], "has channels 0 … 11, not 99"),
        ([[10, 5]], "has channels 0 … 11, not 14"),
        ([[0, 10**12]], "has channels 0 … 11, not 999999999999"),
        ([[5, -2]], "empty list of channels"),
        ([-1], "not -1"),
    ],
)
def test_lists_of_channels_that_make_no_sense_are_refused(
    graph: Graph, channels: list[Any], message: str
) -> None:
    layer = next(op for op in graph.convolutions if op.weight.shape[-1] == 12)
    with pytest.raises(PlanError, match=message):
        resolve(spec(weights=[{"layer": layer.name, "channels": channels}]), graph)


def test_the_order_in_which_channels_are_listed_makes_no_other_plan(graph: Graph) -> None:
    layer = next(op for op in graph.convolutions if op.weight.shape[-1] >= 8).name
    plans = [
        resolve(spec(weights=[{"layer": layer, "channels": channels}]), graph)
        for channels in ([5, 1, 2], [[1, 2], 5], [1, 2, 5])
    ]
    assert len({plan.id for plan in plans}) == 1


def test_momentum_and_accumulation_are_part_of_the_plan(graph: Graph) -> None:
    plain = resolve(spec(), graph)
    batch = resolve(spec(accumulate=8, momentum=0.9), graph)
    assert (batch.accumulate, batch.momentum_q8) == (8, 230)
    assert batch.keeps_velocity
    assert not plain.keeps_velocity
    assert batch.id != plain.id


def test_personal_marks_become_tensors_in_the_order_of_the_delta(graph: Graph) -> None:
    order = [op.name for op in graph.convolutions]
    head = graph.head.name
    fields = {"biases": {"last": 3}, "weights": [{"layer": order[-1]}]}
    marks = {
        "head": (f"{head}.bias", f"{head}.weight"),
        f"{head}.weight": (f"{head}.bias", f"{head}.weight"),
        "biases": tuple(f"{layer}.bias" for layer in order[-3:]),
        order[-1]: (f"{order[-1]}.bias", f"{order[-1]}.weight"),
        f"{order[-2]}.bias": (f"{order[-2]}.bias",),
    }
    for mark, tensors in marks.items():
        assert resolve(spec(**fields, personal=[mark]), graph).personal == tensors
    both = resolve(spec(**fields, personal=[order[-1], "head", "head"]), graph)
    assert both.personal == resolve(spec(**fields, personal=["head", order[-1]]), graph).personal
    assert both.canonical()["personal"] == list(both.personal)
    again = resolve(PlanSpec.model_validate(both.canonical()), graph)
    assert again.id == both.id


def test_a_plan_without_personal_tensors_has_the_id_that_it_had(graph: Graph) -> None:
    plain = resolve(spec(biases={"last": 3}), graph)
    assert "personal" not in plain.canonical()
    assert resolve(spec(biases={"last": 3}, personal=["head"]), graph).id != plain.id


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"personal": ["last"]}, "personal names 'last', of which the plan trains nothing"),
        ({"head": False, "biases": ["last"], "personal": ["head"]}, "personal names 'head'"),
        ({"personal": ["head"]}, "nothing would be left to learn together"),
        ({"biases": ["last"], "personal": ["last.weight"]}, "personal names 'last.weight'"),
    ],
)
def test_marks_that_make_no_sense_are_refused(
    graph: Graph, fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(PlanError, match=why):
        resolve(spec(**fields), graph)
