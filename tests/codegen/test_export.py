"""Versions as ONNX files: onnxruntime has the device's integers, and values come back unchanged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from codegen.compile import build_host_engine, compile_graph, compile_model
from codegen.errors import BundleError, CodegenError, ModelError, VersionError
from codegen.export import export_onnx, import_weights
from codegen.export.integer_model import INPUT, integer_model
from codegen.firmware.boards import load_board
from codegen.firmware.bundle import Bundle
from codegen.firmware.graph_file import load_graph
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.floats import LossChoice
from codegen.graph.ir import Graph, Op, Padding
from codegen.importer.model import import_proto
from codegen.operators.concat import Concat
from codegen.operators.requantize import Requantize
from codegen.program.blob import Blob, all_published, with_values
from codegen.program.lowering import lower
from codegen.program.plans import Plan, WeightUpdate, default_plans
from codegen.quantization.quantize import quantize
from codegen.reference.interpreter import Interpreter
from tests.codegen import mcunet
from tests.codegen.exported import MODELS, exported
from tests.codegen.onnxruntime_oracle import run, session
from tests.codegen.quantized_network import Channels, Code, QuantizedNetwork, random_quantized
from tests.codegen.random_graphs import (
    full_plan,
    padded_graph,
    random_gated_graph,
    random_graph,
    random_picture_graph,
    random_plan,
    random_pooled_graph,
    random_recurrent_graph,
)
from tests.conftest import examples

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
CDDL = ROOT / "fleet" / "protocol" / "tinyfleet.cddl"
FAMILIES = sorted(path.name.removesuffix("_script.onnx") for path in MODELS.glob("*_script.onnx"))


def random_blob(published: Blob, rng: np.random.Generator) -> bytes:
    """Values up to the limits in some tensors, in the others the factory's in another order."""

    def other(tensor: Any) -> Any:
        values = rng.permutation(tensor.values.ravel()).reshape(tensor.values.shape)
        if rng.random() < 0.3:
            values = rng.integers(-tensor.limit, tensor.limit + 1, values.shape)
        return dataclasses.replace(tensor, values=values.astype(tensor.values.dtype))

    return Blob(tuple(other(tensor) for tensor in published.tensors)).pack()


def random_codes(graph: Graph, rng: np.random.Generator, count: int) -> np.ndarray:
    shape = graph.tensors[graph.input].shape
    return rng.integers(-128, 128, (count, *shape)).astype(np.int8)


def computed(interpreter: Interpreter, codes: np.ndarray) -> np.ndarray:
    rows = []
    for sample in codes:
        interpreter.score(sample, 0)
        rows.append(interpreter.logits)
    return np.stack(rows)


def assert_same_integers(graph: Graph, seed: int, count: int = 4) -> None:
    """onnxruntime's and the interpreter's, for random weights and inputs."""
    rng = np.random.default_rng(seed)
    published = all_published(graph).published
    weights = published.unpack(random_blob(published, rng))
    codes = random_codes(graph, rng, count)
    expected = computed(Interpreter(lower(graph, default_plans(graph)[0]), weights), codes)
    model = integer_model(with_values(graph, weights))
    onnx.checker.check_model(model, full_check=True)
    for optimized in (False, True):
        (found,) = session(model, optimized).run(None, {INPUT: codes})
        assert found.dtype == np.int32
        assert np.array_equal(found, expected), optimized


@given(seed=st.integers(0, 10_000))
@examples(30)
def test_onnxruntime_has_the_integers_of_random_networks(seed: int) -> None:
    assert_same_integers(random_graph(seed)[0], seed)


@given(seed=st.integers(0, 10_000))
@examples(40)
def test_onnxruntime_has_the_integers_of_pools_and_branches(seed: int) -> None:
    assert_same_integers(random_pooled_graph(seed)[0], seed)


@given(seed=st.integers(0, 10_000))
@examples(40)
def test_onnxruntime_has_the_integers_of_gates_and_choices(seed: int) -> None:
    assert_same_integers(random_gated_graph(seed)[0], seed)


@given(seed=st.integers(0, 10_000))
@examples(20)
def test_onnxruntime_has_the_integers_of_recurrent_cells(seed: int) -> None:
    assert_same_integers(random_recurrent_graph(seed)[0], seed)


@given(seed=st.integers(0, 10_000))
@examples(12)
def test_onnxruntime_has_the_integers_of_pictures_without_a_head(seed: int) -> None:
    assert_same_integers(random_picture_graph(seed)[0], seed)


@given(seed=st.integers(0, 10_000))
@examples(30)
def test_onnxruntime_has_the_integers_of_scales_out_of_proportion(seed: int) -> None:
    """Steep channels, whose sums go left before they are multiplied, and dead ones."""
    try:
        graph = quantize(import_proto(random_quantized(seed)[0], "net"), None)
    except ModelError:
        return  # a channel that the device can't hold
    assert_same_integers(graph, seed)


@pytest.mark.parametrize("padding", [(0, 0, 1, 1), (0, 0, 0, 1), (1, 0, 0, 2)])
def test_onnxruntime_has_the_integers_of_padded_kernels(padding: Any) -> None:
    assert_same_integers(padded_graph(Padding(*padding))[0], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_has_the_integers_of_every_family(family: str) -> None:
    imported = exported(f"{family}_script.onnx")
    rng = np.random.default_rng(5)
    samples = rng.normal(size=(8, *imported.shapes[imported.input])).astype(np.float32)
    assert_same_integers(quantize(imported, samples), 5, count=2)


@mcunet.needs_mcunet
def test_onnxruntime_has_the_integers_of_a_real_backbone() -> None:
    graph = mcunet.graph()
    codes = np.stack([mcunet.sample(index)[0] for index in (0, 1)])
    expected = computed(Interpreter(lower(graph, default_plans(graph)[0])), codes)
    assert np.array_equal(run(integer_model(graph), codes)[0], expected)


def test_a_tensor_that_is_concatenated_with_itself_is_recoded_once() -> None:
    graph, _ = next(
        (graph, op)
        for graph in (random_pooled_graph(seed)[0] for seed in range(30))
        for op in graph.ops
        if isinstance(op, Concat) and graph.tensors[op.inputs[0]].name.endswith("_for_both")
    )
    twice: list[Op] = []
    for op in graph.ops:
        twice += [op, op] if isinstance(op, Requantize) and op.name.endswith("_for_both") else [op]
    repeated = dataclasses.replace(graph, ops=tuple(twice))
    assert integer_model(repeated).graph.node == integer_model(graph).graph.node


# Bundles.


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Trains the biases and the head, and some channels of one weight."""
    out = tmp_path_factory.mktemp("digits") / "bundle"
    plans = [f"{DIGITS / 'plans.json'}#middle"]
    model, samples = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
    return compile_model(model, "stm32f746", plans, samples, out, CDDL)


def compiled(graph: Graph, plans: list[Plan], out: Path) -> Bundle:
    return compile_graph(
        graph,
        load_board("stm32f746"),
        plans,
        onnx_sha256="0" * 64,
        out=out,
        protocol_cddl=CDDL,
        toolchain=find_toolchain(),
    )


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Pools, branches, and the reconstruction of its input."""
    graph, _ = random_pooled_graph(3, "mse")
    folder = tmp_path_factory.mktemp("pooled") / "bundle"
    return compiled(graph, [full_plan(graph), random_plan(graph, 1)], folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The reconstruction of its input, without a matrix at the end."""
    graph, _ = random_picture_graph(3)
    return compiled(graph, [full_plan(graph)], tmp_path_factory.mktemp("picture") / "bundle")


@pytest.fixture(params=["digits", "pooled", "picture"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    made: Bundle = request.getfixturevalue(request.param)
    return made


def exported_to(bundle: Bundle, folder: Path, weights: bytes | None = None) -> onnx.ModelProto:
    export_onnx(bundle, weights, folder / "version.onnx")
    return onnx.load(folder / "version.onnx")


def imported_from(bundle: Bundle, folder: Path, model: onnx.ModelProto) -> bytes:
    onnx.save(model, folder / "trained.onnx")
    return import_weights(bundle, folder / "trained.onnx")


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(entry for entry in model.graph.initializer if entry.name == name)


def change(model: onnx.ModelProto, name: str, by: Callable[[Any], Any]) -> None:
    stored = constant(model, name)
    value = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array(np.asarray(by(value), value.dtype), name))


def test_an_exported_version_has_the_integers_of_the_engine(bundle: Bundle, tmp_path: Path) -> None:
    graph, weights = load_graph(bundle)
    rng = np.random.default_rng(2)
    library = build_host_engine(bundle, tmp_path / "engine.so")
    for version in (None, random_blob(weights.published, rng)):
        (found,) = run(exported_to(bundle, tmp_path, version), codes := random_codes(graph, rng, 6))
        engine = HostEngine(library, bundle.manifest.plans[0].id, version)
        for sample, row in zip(codes, found, strict=True):
            engine.score(sample, 0)
            assert np.array_equal(engine.logits, row)


def test_a_version_comes_back_from_its_export_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    published = load_graph(bundle)[1].published
    export_onnx(bundle, None, tmp_path / "factory.onnx")
    assert import_weights(bundle, tmp_path / "factory.onnx") == bundle.weights
    for seed in range(3):
        version = random_blob(published, np.random.default_rng(seed))
        export_onnx(bundle, version, tmp_path / "version.onnx")
        assert import_weights(bundle, tmp_path / "version.onnx") == version


def test_a_trained_tensor_changes_its_part_of_the_blob_only(digits: Bundle, tmp_path: Path) -> None:
    model = exported_to(digits, tmp_path)
    change(model, "b4_pw2.weight", lambda value: -value)
    published = load_graph(digits)[1].published
    before = published.unpack(digits.weights)
    after = published.unpack(imported_from(digits, tmp_path, model))
    assert np.array_equal(after.pop("b4_pw2.weight"), -before.pop("b4_pw2.weight"))
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_changed_frozen_tensors_are_refused_with_their_names(
    digits: Bundle, tmp_path: Path
) -> None:
    model = exported_to(digits, tmp_path)
    for name in ("stem.weight", "b1_dw.weight", "last.bias"):
        change(model, name, lambda value: -value)
    with pytest.raises(VersionError, match=r"stem\.weight, b1_dw\.weight, which .* frozen") as info:
        imported_from(digits, tmp_path, model)
    assert "last.bias" not in str(info.value)
    assert "compile a new bundle" in str(info.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda blob: blob[:-4], r"have 13,236 bytes, a version of this bundle has 13,240"),
        (lambda blob: b"", r"have 0 bytes"),
        (lambda blob: blob + bytes(4), r"have 13,244 bytes"),
    ],
)
def test_a_truncated_blob_is_refused(
    digits: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    with pytest.raises(VersionError, match=says):
        export_onnx(digits, damage(digits.weights), tmp_path / "version.onnx")
    assert not (tmp_path / "version.onnx").exists()


def test_values_that_devices_cannot_hold_are_refused(digits: Bundle, tmp_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in digits.manifest.tensors}
    blob = bytearray(digits.weights)
    blob[tensors["b4_pw2.weight"].offset] = 0x80
    with pytest.raises(VersionError, match=r"b4_pw2\.weight is -128 steps, beyond ±127"):
        export_onnx(digits, bytes(blob), tmp_path / "version.onnx")
    model = exported_to(digits, tmp_path)
    change(model, "head.weight", lambda value: np.full_like(value, 32700))
    with pytest.raises(VersionError, match=r"head\.weight is 32700 steps, beyond ±32512"):
        imported_from(digits, tmp_path, model)


def test_bytes_between_the_tensors_are_refused(quantized: Bundle, tmp_path: Path) -> None:
    covered = np.zeros(len(quantized.weights), bool)
    for tensor in load_graph(quantized)[1].published.tensors:
        offset = next(t.offset for t in quantized.manifest.tensors if t.name == tensor.name)
        covered[offset : offset + tensor.size] = True
    blob = bytearray(quantized.weights)
    blob[int(np.flatnonzero(~covered)[0])] = 1
    with pytest.raises(VersionError, match="between their tensors"):
        export_onnx(quantized, bytes(blob), tmp_path / "version.onnx")


def test_a_path_that_cannot_be_written_is_refused(digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(VersionError, match=r"no/version\.onnx: can't be written"):
        export_onnx(digits, None, tmp_path / "no" / "version.onnx")


def test_the_file_says_what_a_step_of_each_tensor_is(digits: Bundle, tmp_path: Path) -> None:
    model = exported_to(digits, tmp_path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["tinyfleet.model_digest"] == digits.manifest.model.digest
    assert json.loads(said["tinyfleet.output_scale"]) == digits.manifest.model.logit_scale
    tensors = json.loads(said["tinyfleet.tensors"])
    for tensor in digits.manifest.tensors:
        expected = {"step": list(tensor.step), "limit": tensor.limit, "frozen": False}
        assert tensors[tensor.name] == expected
    assert tensors["stem.weight"]["frozen"]


def without_last_node(model: onnx.ModelProto) -> None:
    model.graph.node.pop()


def with_another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "stem/sums"


def with_more_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Relu", ["outputs"], ["more"], "more"))


def with_another_stride(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name == "stem/sums")
    attribute = next(entry for entry in node.attribute if entry.name == "pads")
    attribute.ints[:] = [2, 2, 2, 2]


def with_another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def with_another_scale(model: onnx.ModelProto) -> None:
    change(model, "stem/product.by", lambda value: value + 32)


def with_another_shape(model: onnx.ModelProto) -> None:
    stored = constant(model, "head.bias")
    stored.CopyFrom(numpy_helper.from_array(np.zeros(3, np.int32), "head.bias"))


def without_a_tensor(model: onnx.ModelProto) -> None:
    constant(model, "head.bias").name = "bias.of.head"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_last_node, "has no node 'outputs'"),
        (with_another_output, "has no output 'outputs'"),
        (with_more_nodes, r"has node 'more' \(Relu\)"),
        (with_another_stride, "has another node 'stem/sums'"),
        (with_another_input, r"has an input of \[7, "),
        (with_another_scale, r"has another constant 'stem/product\.by'"),
        (with_another_shape, r"has 'head\.bias' as int32 \[3\], the bundle has it as int32 \[10\]"),
        (without_a_tensor, r"has no constant 'head\.bias'"),
    ],
)
def test_another_network_is_refused_by_what_differs(
    digits: Bundle, tmp_path: Path, damage: Callable[[onnx.ModelProto], None], says: str
) -> None:
    model = exported_to(digits, tmp_path)
    damage(model)
    with pytest.raises(VersionError, match=says):
        imported_from(digits, tmp_path, model)


def test_the_export_of_another_bundle_is_refused(
    digits: Bundle, pooled: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(VersionError, match="it isn't the network of this bundle"):
        imported_from(digits, tmp_path, exported_to(pooled, tmp_path))


def test_files_that_cannot_be_read_are_refused(digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        import_weights(digits, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        import_weights(digits, tmp_path / "text.onnx")


def test_a_float_model_is_refused(digits: Bundle) -> None:
    with pytest.raises(VersionError, match="has no QuantizeLinear"):
        import_weights(digits, DIGITS / "digits.onnx")


def test_a_bundle_of_an_earlier_version_has_to_be_compiled_again(
    digits: Bundle, tmp_path: Path
) -> None:
    files = {name: sha for name, sha in digits.manifest.files.items() if name != "graph.json"}
    earlier = digits.manifest.model_copy(update={"files": files})
    with pytest.raises(BundleError, match=r"has no graph\.json.* compile the bundle again"):
        export_onnx(dataclasses.replace(digits, manifest=earlier), None, tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tinyfleet-graph/1", "tinyfleet-graph/2"),
        ('"kind": "Conv"', '"kind": "Cone"'),
        ('"tensors"', '"tensor"'),
        ('"name": "stem"', '"name": "root"'),
        ('"operations"', '"operators"'),
        ("[", "{"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    digits: Bundle, tmp_path: Path, old: str, new: str
) -> None:
    copy = Path(shutil.copytree(digits.path, tmp_path / "copy"))
    text = (copy / "graph.json").read_text()
    assert old in text
    (copy / "graph.json").write_text(text.replace(old, new, 1))
    with pytest.raises(BundleError, match=r"graph\.json is damaged, or of another version"):
        load_graph(dataclasses.replace(digits, path=copy))


# Quantized models of the same network.


def quantized_model(**changes: Any) -> onnx.ModelProto:
    """A small QDQ file; ``changes`` are other arrays or numbers in it."""
    rng = np.random.default_rng(7)
    made: dict[str, Any] = {
        "stem": rng.integers(-127, 128, (6, 3, 3, 3)),
        "stem_scale": rng.uniform(0.001, 0.003, 6),
        "mix": rng.integers(-127, 128, (6, 1, 3, 3)),
        "mix_scale": rng.uniform(0.004, 0.008, 6),
        "mix_bias": rng.integers(-400, 400, 6),
        "head": rng.integers(-127, 128, (4, 6)),
        "head_scale": rng.uniform(0.004, 0.005, 4),
        "head_bias": [1, -2, 3, 4],
        "zero": -3,
        "pad": 1,
    }
    made.update(changes)
    made["mix"][2] = 0
    network = QuantizedNetwork((3, 8, 8), Code(0.02, made["zero"], np.int8))
    network.conv(
        "stem", Channels(made["stem"], made["stem_scale"], [5] * 6), Code(0.05), stride=2, pad=1
    )
    mix = Channels(made["mix"], made["mix_scale"], made["mix_bias"])
    network.conv("mix", mix, Code(0.04), depthwise=True, pad=made["pad"])
    return network.finish(Channels(made["head"], made["head_scale"], made["head_bias"]))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Compiled from a QDQ file; devices train the depthwise layer and the head."""
    graph = quantize(import_proto(quantized_model(), "net"), None)
    plan = Plan("some", ("mix",), (WeightUpdate("mix", (0, 3)),), True, "q8.8")
    return compiled(graph, [plan], tmp_path_factory.mktemp("quantized") / "bundle")


def test_the_quantized_file_of_a_bundle_is_its_first_version(
    quantized: Bundle, tmp_path: Path
) -> None:
    assert imported_from(quantized, tmp_path, quantized_model()) == quantized.weights


def test_a_full_integer_file_is_the_first_version_of_its_bundle_and_not_taken_for_an_export(
    tmp_path: Path,
) -> None:
    path = MODELS / "full_integer_int8.onnx"
    made = compile_model(path, "stm32f746", None, None, tmp_path / "bundle", CDDL)
    assert import_weights(made, path) == made.weights
    export_onnx(made, None, tmp_path / "version.onnx")
    assert import_weights(made, tmp_path / "version.onnx") == made.weights


def test_the_quantized_file_of_a_bundle_for_targets_is_its_first_version(tmp_path: Path) -> None:
    choice = LossChoice("mse", "said so", target_scale=0.01)
    graph = quantize(import_proto(quantized_model(), "net", choice), None)
    assert graph.head.target_scale == 0.01
    bundle = compiled(graph, [full_plan(graph)], tmp_path / "bundle")
    assert imported_from(bundle, tmp_path, quantized_model()) == bundle.weights


def test_a_quantized_model_trained_elsewhere_is_a_new_version(
    quantized: Bundle, tmp_path: Path
) -> None:
    rng = np.random.default_rng(8)
    trained = {
        "mix": rng.integers(-127, 128, (6, 1, 3, 3)),
        "mix_bias": rng.integers(-400, 400, 6),
        "head": rng.integers(-127, 128, (4, 6)),
        "head_scale": rng.uniform(0.001, 0.009, 4),
    }
    model = quantized_model(**trained)
    version = imported_from(quantized, tmp_path, model)
    graph, weights = load_graph(quantized)
    values = weights.published.unpack(version)
    assert np.array_equal(values["mix.weight"], trained["mix"][:, 0].transpose(1, 2, 0))
    assert np.array_equal(values["mix.bias"], trained["mix_bias"])
    step = graph.head.weight_scale / 256
    real = trained["head"] * trained["head_scale"].astype(np.float32)[:, None]
    assert np.abs(values["head.weight"] * step - real).max() <= step / 2 * 1.001


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stem": np.ones((6, 3, 3, 3), np.int64)}, r"changes stem\.weight, which devices keep"),
        ({"mix_scale": np.full(6, 0.006)}, "weight scale of 0.006.* in channel 0 of layer 'mix'"),
        ({"zero": -4}, "tensor 'x' with shape .* zero point -4, the bundle has 'x' .* point -3"),
        ({"pad": 0}, r"has DepthwiseConv 'mix' \(or its options\)"),
        (
            {"head": np.ones((3, 6), np.int64), "head_scale": [1.0] * 3, "head_bias": [1] * 3},
            r"has a weight of \[3, 6\] in layer 'head', the bundle's 'head' has \[4, 6\]",
        ),
        ({"head_scale": [2.0] * 4}, r"head\.weight is -?\d+ steps, beyond ±32512"),
    ],
    ids=["frozen", "scale", "zero point", "padding", "classes", "limit"],
)
def test_quantized_models_that_are_not_of_the_bundle_are_refused(
    quantized: Bundle, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CodegenError, match=says):
        imported_from(quantized, tmp_path, quantized_model(**changes))


def test_layers_that_the_bundle_has_not_are_refused(quantized: Bundle, tmp_path: Path) -> None:
    network = QuantizedNetwork((3, 8, 8), Code(0.02, -3, np.int8))
    rng = np.random.default_rng(7)
    channels = Channels(rng.integers(-127, 128, (6, 3, 3, 3)), [0.002] * 6, [5] * 6)
    network.conv("stem", channels, Code(0.05), stride=2, pad=1)
    model = network.finish(Channels(rng.integers(-127, 128, (4, 6)), [0.004] * 4, [1, 2, 3, 4]))
    with pytest.raises(VersionError, match=r"has GlobalAveragePool 'pool' .* has DepthwiseConv"):
        imported_from(quantized, tmp_path, model)
