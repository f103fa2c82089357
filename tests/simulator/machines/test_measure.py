import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.compile import build_host_engine, compile_model
from codegen.errors import BundleError
from codegen.firmware.boards import load_board
from codegen.firmware.bundle import Bundle
from codegen.firmware.host_engine import HostEngine
from simulator.errors import MeasureError
from simulator.machines.measure import ImageEngine, Measurement, measure

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples" / "digits"
SAMPLE = np.random.default_rng(7).integers(-128, 128, (8, 8, 1)).astype(np.int8)
LABEL, RATE, SEED = 3, 0.02, 99


@pytest.fixture(scope="module")
def bundle(board: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compile_model(
        DIGITS / "digits.onnx",
        board,
        None,
        DIGITS / "calibration.npz",
        tmp_path_factory.mktemp("measured") / board,
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )


@pytest.fixture(scope="module")
def smallest(bundle: Bundle) -> Measurement:
    return measure(bundle.path, sample=SAMPLE, label=LABEL, learning_rate=RATE, seed=SEED)


def test_logits_and_loss_are_those_of_the_host_library(
    bundle: Bundle, smallest: Measurement, tmp_path: Path
) -> None:
    library = build_host_engine(bundle, tmp_path / "engine.so")
    engine = HostEngine(library, smallest.plan)
    predicted = engine.score(SAMPLE, LABEL)
    scale = bundle.manifest.model.logit_scale
    assert smallest.logits == [int(value) * scale for value in engine.logits]
    assert smallest.loss == engine.loss_q16 / 2**16
    assert smallest.loss_unit == "nats"
    assert smallest.predicted == predicted


def test_counts_repeat_and_add_up(bundle: Bundle, smallest: Measurement) -> None:
    again = measure(bundle.path, sample=SAMPLE, label=LABEL, learning_rate=RATE, seed=SEED)
    assert again == smallest
    counts = smallest.instructions
    assert sum(counts.by_kernel.values()) == counts.step
    assert 0 < counts.forward < counts.step
    assert counts.by_kernel["tf_convolution_forward"] > 0


def test_a_larger_plan_takes_more_instructions_and_more_sram(bundle: Bundle) -> None:
    small, full = (
        measure(bundle.path, p.name) for p in (bundle.manifest.plans[i] for i in (0, -1))
    )
    assert full.instructions.step > small.instructions.step
    assert full.sram_touched_bytes > small.sram_touched_bytes
    assert small.logits == full.logits


def test_what_is_touched_fits_what_the_report_promises(bundle: Bundle) -> None:
    for report in bundle.report.plans:
        measured = measure(bundle.path, report.id)
        promised = report.sram_bytes
        assert measured.stack_high_water_bytes <= promised.stack
        assert promised.arena < measured.sram_touched_bytes <= promised.total
        assert measured.sram_touched_bytes <= measured.sram_limit_bytes


def test_the_measurement_is_plain_json(smallest: Measurement) -> None:
    data = json.loads(json.dumps(smallest.to_json()))
    assert {"forward", "step", "by_kernel"} == set(data["instructions"])
    assert len(data["logits"]) == 10


def test_plans_are_found_by_name_id_and_prefix(bundle: Bundle) -> None:
    plan = bundle.manifest.plans[1]
    found = {measure(bundle.path, wanted).plan for wanted in (plan.name, plan.id, plan.id[:10])}
    assert found == {plan.id}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan_id": "nope"}, r"no plan 'nope'; it has \w+ \("),
        ({"machine": "toaster"}, "no machine 'toaster'"),
        ({"label": 10}, "label 10 is none of 0 … 9"),
        ({"sample": np.zeros(3, np.int8)}, "3 values of int8"),
    ],
)
def test_wrong_wishes_are_refused_by_name(
    bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MeasureError, match=message):
        measure(bundle.path, **options)


def test_a_corrupt_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    data = bytearray((broken / "firmware.elf").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "firmware.elf").write_bytes(data)
    with pytest.raises(BundleError, match=r"firmware\.elf"):
        measure(broken)


def test_steps_on_the_image_follow_the_host_library_bit_for_bit(
    bundle: Bundle, tmp_path: Path
) -> None:
    library = build_host_engine(bundle, tmp_path / "engine.so")
    random = np.random.default_rng(3)
    for plan in bundle.manifest.plans[:2]:
        host = HostEngine(library, plan.id)
        with ImageEngine(bundle, plan.id) as image:
            for step in range(5):
                sample = random.integers(-128, 128, (8, 8, 1)).astype(np.int8)
                for engine in (host, image):
                    engine.train_step(sample, step, 2**20 // 50, 11)
                assert np.array_equal(host.logits, image.logits)
                assert host.loss_q16 == image.loss_q16
            assert host.state == image.state


def test_a_board_of_the_users_own_needs_no_entry_anywhere(tmp_path: Path) -> None:
    described = json.loads(load_board("stm32f746").model_dump_json())
    described |= {"name": "my-board", "sram_limit_bytes": 200_000}
    (tmp_path / "my-board.json").write_text(json.dumps(described))
    bundle = compile_model(
        DIGITS / "digits.onnx",
        tmp_path / "my-board.json",
        None,
        DIGITS / "calibration.npz",
        tmp_path / "bundle",
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )
    measured = measure(bundle.path, "small")
    assert (measured.board, measured.sram_limit_bytes) == ("my-board", 200_000)


@pytest.mark.parametrize("board", ["stm32f407"], indirect=True)
@pytest.mark.parametrize("name", ["rp2040", "nrf5340"])
def test_a_board_without_a_port_is_measured_and_computes_what_others_do(
    name: str, smallest: Measurement, tmp_path: Path
) -> None:
    bundle = compile_model(
        DIGITS / "digits.onnx",
        name,
        [f"{DIGITS / 'plans.json'}#small"],
        DIGITS / "calibration.npz",
        tmp_path / "bundle",
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )
    assert any(note.startswith(f"engine only: there is no port for {name}") for note in
               bundle.report.notes)  # fmt: skip
    measured = measure(bundle.path, sample=SAMPLE, label=LABEL, learning_rate=RATE, seed=SEED)
    assert (measured.logits, measured.loss) == (smallest.logits, smallest.loss)
    assert measured.sram_touched_bytes <= bundle.report.plans[0].sram_bytes.total
