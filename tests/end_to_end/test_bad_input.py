"""What users get wrong: one message that names the thing and the remedy, and exit code 1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet.gateway.broker import Broker, BrokerConfig
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.ports import free_port

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"


def tinyfleet(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleet.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_refused(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    """One message on stderr with all the words, code 1, no traceback."""
    said = answer.stderr
    assert answer.returncode == 1, said + answer.stdout
    assert "Traceback" not in said + answer.stdout
    assert said.count("error:") == 1, said
    for word in words:
        assert word in said, said


def compile_digits(
    out: Path, *options: object, model: Path = EXAMPLE / "digits.onnx"
) -> list[object]:
    calibration = ["--calibration", EXAMPLE / "calibration.npz"]
    return ["compile", model, "--board", "stm32f746", "--out", out, *calibration, *options]


def tensor_model(path: Path, operator: str, channels: int) -> Path:
    """x [1, 1, 8, 8] → convolution → ``operator`` → global average → head of ten classes."""
    random = np.random.default_rng(1)
    weights = {
        "w": random.normal(size=(channels, 1, 3, 3)),
        "head": random.normal(size=(channels, 10)),
        "bias": np.zeros(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["a"], ["b"], "second"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "third"),
        helper.make_node("Flatten", ["c"], ["d"], "fourth"),
        helper.make_node("Gemm", ["d", "head", "bias"], ["y"], "fifth"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path) -> None:
    model = tensor_model(tmp_path / "net.onnx", "Sinh", 4)
    answer = tinyfleet(*compile_digits(tmp_path / "out", model=model))
    assert_refused(answer, "Sinh", "second")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(b"not a model at all")
    assert_refused(tinyfleet(*compile_digits(tmp_path / "out", model=model)), "net.onnx")
    assert_refused(
        tinyfleet(*compile_digits(tmp_path / "out", model=tmp_path / "gone.onnx")), "gone.onnx"
    )


def test_a_plan_that_names_a_missing_layer_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps({"format": "tinyfleet-plan/1", "name": "p", "weights": [{"layer": "b9_pw9"}]})
    )
    answer = tinyfleet(*compile_digits(tmp_path / "out", "--plan", plan))
    assert_refused(answer, "b9_pw9", "b1_pw1")


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        # One activation of 8·8·4500 bytes alone is more than the 256 KiB that the board may use.
        (4500, ("SRAM", "head-only", "262,144")),
        # The weights in the image are more than the 1 MiB of internal flash.
        (40_000, ("flash", "factory weights, without code", "1,048,576")),
    ],
)
def test_a_model_that_is_too_big_for_the_board_is_refused_with_the_table(
    tmp_path: Path, channels: int, words: tuple[str, ...]
) -> None:
    model = tensor_model(tmp_path / "net.onnx", "Relu", channels)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"format": "tinyfleet-plan/1", "name": "head-only"}))
    # Each sample has millions of activations.
    few = tmp_path / "few.npz"
    with np.load(EXAMPLE / "calibration.npz") as arrays:
        np.savez(few, **{name: array[:8] for name, array in arrays.items()})
    options = ["--plan", plan, "--calibration", few]
    answer = tinyfleet(*compile_digits(tmp_path / "out", *options, model=model))
    assert_refused(answer, "stm32f746", *words)
    assert "bytes" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_board_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    answer = tinyfleet("compile", EXAMPLE / "digits.onnx", "--board", "z80", "--out", tmp_path)
    assert_refused(answer, "z80", "stm32f407")


def test_a_float_model_without_calibration_is_refused(tmp_path: Path) -> None:
    answer = tinyfleet(
        "compile", EXAMPLE / "digits.onnx", "--board", "stm32f746", "--out", tmp_path / "out"
    )
    assert_refused(answer, "calibration")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    options = ["--plan", f"{EXAMPLE / 'plans.json'}#small"]
    compiled = tinyfleet(*compile_digits(folder, *options, "--json"))
    assert compiled.returncode == 0, compiled.stderr
    return folder


def test_the_report_has_every_promised_key(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    assert report["board"] == "stm32f746"
    (plan,) = report["plans"]
    purposes = ("arena", "state", "samples", "link", "data_bss_other", "stack")
    assert plan["sram_bytes"]["total"] == sum(plan["sram_bytes"][name] for name in purposes)
    assert plan["sram_bytes"]["total"] <= plan["sram_limit_bytes"]
    assert {"code", "weights", "total"} <= report["flash_bytes"].keys()
    assert {"forward", "backward"} <= plan["macs"].keys()
    assert plan["delta_values"] > 0


@pytest.mark.parametrize("damaged", ["firmware.elf", "manifest.json", "weights.bin"])
def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, damaged: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / damaged).read_bytes())
    data[len(data) // 2] ^= 0x20
    (copy / damaged).write_bytes(data)
    assert_refused(tinyfleet("measure", copy), "damaged")


def test_a_bundle_without_its_firmware_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "firmware.elf").unlink()
    assert_refused(tinyfleet("measure", copy), "firmware.elf")
    assert_refused(tinyfleet("measure", tmp_path / "gone"), "gone")


def test_a_bundle_without_the_wanted_plan_is_refused_with_the_known_ones(bundle: Path) -> None:
    assert_refused(tinyfleet("measure", bundle, "--plan", "huge"), "huge", "small")


def test_a_gateway_whose_broker_refuses_the_login_says_so(tmp_path: Path) -> None:
    config = BrokerConfig(fleet="demo", gateways={"gw-1": "right"}, port=free_port())
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    GatewaySettings(
        fleet="demo",
        gateway="gw-1",
        store=tmp_path / "gw.sqlite",
        socket=tmp_path / "gw.sock",
        broker=BrokerSettings(port=config.port, user="gw-1", password_file=secret),
    ).write(tmp_path / "gw.toml")
    with Broker(tmp_path / "broker", config):
        answer = subprocess.run(
            [sys.executable, "-m", "fleet.gateway", "--config", str(tmp_path / "gw.toml")],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "gw-1" in answer.stderr
    assert "password" in answer.stderr
    assert "wrong\n" not in answer.stderr.replace("is wrong", ""), "no password in messages"


def test_a_result_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    answer = tinyfleet("demo", "--devices", 2, "--rounds", 1, "--out", blocked / "demo")
    assert_refused(answer, "file")


def test_too_many_devices_for_the_digits_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    answer = tinyfleet("demo", "--devices", 1000, "--rounds", 1, "--out", tmp_path / "demo")
    assert_refused(answer, "1000")
