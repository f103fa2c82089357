"""The result folder, made from a recorded run."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet.demo.report import headline, link_rows, page, prometheus, write_result
from fleet.demo.result import (
    Deltas,
    DemoResult,
    DeviceRound,
    PlanFacts,
    RoundFacts,
    accuracy_of,
    accuracy_per_round,
    summary,
    uplink_bytes,
)

SMALL, LARGE = "a" * 64, "b" * 64


def row(
    device: int, number: int, correct: int, plan: str = SMALL, **changes: object
) -> DeviceRound:
    values: dict[str, object] = {
        "round": number,
        "device": f"mcu-{device:02}",
        "gateway": "gw-1",
        "board": "stm32f746",
        "plan": plan,
        "plan_reason": "no larger plan",
        "status": "accepted",
        "train_samples": 20,
        "held_out": 10,
        "correct_before": correct,
        "correct_after": correct,
        "loss_before": 1.0,
        "loss_after": 0.5,
        "coded_bytes": 180,
        "payload_bytes": 200,
        "seconds": 1.5,
    }
    return DeviceRound(**(values | changes))  # type: ignore[arg-type]


def plan_facts(identifier: str, name: str, devices: int) -> PlanFacts:
    return PlanFacts(
        id=identifier,
        name=name,
        board="stm32f746",
        devices=devices,
        sram_bytes={"arena": 10_000, "state": 2_000, "stack": 4_096},
        sram_total_bytes=16_096,
        sram_limit_bytes=262_144,
        delta_values=400,
        instructions_per_step=1_234_567,
        instructions_forward=400_000,
        stack_high_water_bytes=700,
    )


@pytest.fixture
def result() -> DemoResult:
    return DemoResult(
        devices=20,
        rounds=2,
        seed=7,
        seconds=61.27,
        parameters=5_000,
        compiler="arm-none-eabi-gcc 12.2",
        plans=[plan_facts(SMALL, "small", 10), plan_facts(LARGE, "large <all>", 10)],
        first_scores=[row(d, 0, d % 10, train_samples=0) for d in range(20)],
        device_rounds=[
            row(d, r, 6, plan=LARGE if d % 2 else SMALL, payload_bytes=300 if d % 2 else 100)
            for r in (1, 2)
            for d in range(20)
        ],
        final_scores=[row(d, 3, 9, train_samples=0) for d in range(20)],
        round_facts=[RoundFacts(1, 22, 20, 5.0), RoundFacts(2, 20, 20, 4.0)],
        deltas=Deltas(accepted=40, late=2, refused={"crc": 1, "wrong-plan": 2}),
    )


def test_accuracy_is_the_median_and_the_mean_of_the_worst_tenth() -> None:
    scores = [row(d, 0, correct) for d, correct in enumerate([9, 1, 3, 8, 7, 6, 6, 8, 9, 9, 2] * 2)]
    accuracy = accuracy_of(scores)
    assert accuracy.median == pytest.approx(0.7)
    assert accuracy.worst_tenth == pytest.approx(0.1), "of 22 devices, 2 are a tenth"


def test_devices_without_held_out_samples_do_not_count() -> None:
    scores = [row(0, 0, 5), row(1, 0, 0, held_out=0)]
    assert accuracy_of(scores).median == 0.5


def test_the_curve_begins_with_the_lab_weights_and_ends_with_the_last_ones(
    result: DemoResult,
) -> None:
    points = accuracy_per_round(result)
    assert [number for number, _ in points] == [0, 1, 2]
    assert [at.median for _, at in points] == [pytest.approx(v) for v in (0.45, 0.6, 0.9)]


def test_scoring_rounds_do_not_dilute_the_uplink(result: DemoResult) -> None:
    scoring = [row(0, 0, 5, train_samples=0, payload_bytes=10)]
    assert uplink_bytes([*scoring, *result.device_rounds]) == uplink_bytes(result.device_rounds)


def test_the_summary_has_every_promised_key(result: DemoResult) -> None:
    facts = json.loads(json.dumps(summary(result)))
    assert {"devices", "rounds", "seed", "seconds"} <= facts.keys()
    assert facts["accuracy"] == {
        "median_before": 0.45,
        "median_after": 0.9,
        "worst_tenth_before": 0.0,
        "worst_tenth_after": 0.9,
    }
    assert facts["uplink_over_all_plans"] == {
        "bytes_per_device_round": 200.0,
        "dense_fp32_bytes": 20_000,
        "ratio": 0.01,
    }
    assert {
        "id",
        "devices",
        "sram_total_bytes",
        "sram_limit_bytes",
        "instructions_per_step",
    } <= facts["plans"][0].keys()
    assert {
        name: facts["deltas"][name] for name in ("accepted", "late", "duplicate", "refused")
    } == {
        "accepted": 40,
        "late": 2,
        "duplicate": 0,
        "refused": 3,
    }
    assert facts["stragglers"] == 2


def test_plans_are_compared_by_their_own_devices(result: DemoResult) -> None:
    small, large = summary(result)["plans"]  # type: ignore[misc]
    assert small["uplink"]["bytes_per_device_round"] == 100.0
    assert large["uplink"]["bytes_per_device_round"] == 300.0
    assert small["accuracy"]["median_before"] == pytest.approx(0.4), "devices 0, 2, … 18"
    assert large["accuracy"]["median_before"] == pytest.approx(0.5), "devices 1, 3, … 19"


def test_the_whole_link_is_counted_per_plan_and_training_round(result: DemoResult) -> None:
    result = dataclasses.replace(
        result,
        bytes_up={f"mcu-{d:02}": 2_000 if d % 2 else 1_000 for d in range(20)},
        bytes_down={f"mcu-{d:02}": 8_000 for d in range(20)},
    )
    small, large = summary(result)["plans"]  # type: ignore[misc]
    assert small["link"] == {
        "bytes_up_per_device_round": 500.0,
        "bytes_down_per_device_round": 4_000.0,
        "ratio_up": 0.025,
        "ratio_down": 0.2,
    }
    assert large["link"]["bytes_up_per_device_round"] == 1_000.0
    assert summary(result)["link"]["bytes_up_per_device_round"] == 750.0  # type: ignore[index]
    assert [row[4:6] for row in link_rows(result)] == [["500", "1/40"], ["1,000", "1/20"]]


def test_the_uplink_is_that_of_the_middle_plan_with_everything_on_the_link(
    result: DemoResult,
) -> None:
    plans = [
        dataclasses.replace(plan, name={"small": "middle"}.get(plan.name, plan.name))
        for plan in result.plans
    ]
    counted = dataclasses.replace(
        result, plans=plans, bytes_up={row.device: 150 for row in result.device_rounds}
    )
    uplink = summary(counted)["uplink"]
    assert isinstance(uplink, dict)
    assert uplink["plan"] == "middle"
    middle = {plan.id for plan in plans if plan.name == "middle"}
    rows = [row for row in result.device_rounds if row.plan in middle]
    expected = 150 * len({row.device for row in rows}) / len(rows)
    assert uplink["bytes_per_device_round"] == round(expected, 1)
    assert uplink["ratio"] == pytest.approx(expected / 20_000, abs=1e-6)


def test_the_last_lines_say_the_gain_and_the_uplink_of_the_middle_plan(
    result: DemoResult,
) -> None:
    plans = [dataclasses.replace(result.plans[0], name="middle"), result.plans[1]]
    gain, uplink = headline(dataclasses.replace(result, plans=plans))
    assert "45.0 % → 90.0 % (+45.0 points)" in gain
    assert "middle plan per device and round: 100 bytes of delta (1/200 of dense fp32)" in uplink


def test_a_run_in_which_nothing_was_accepted_still_makes_a_folder(tmp_path: Path) -> None:
    empty = DemoResult(
        devices=2,
        rounds=1,
        seed=1,
        seconds=1.0,
        parameters=100,
        compiler="zig",
        plans=[plan_facts(SMALL, "small", 0)],
        first_scores=[],
        device_rounds=[],
        final_scores=[],
        round_facts=[RoundFacts(1, 2, 0, 1.0)],
        deltas=Deltas(refused={"crc": 2}),
    )
    write_result(empty, tmp_path)
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["accuracy"]["median_after"] is None
    assert facts["uplink"]["ratio"] is None


def test_the_folder_holds_every_promised_file(result: DemoResult, tmp_path: Path) -> None:
    write_result(result, tmp_path / "demo")
    write_result(result, tmp_path / "demo")  # a second run replaces the first one's files
    names = {str(p.relative_to(tmp_path / "demo")) for p in (tmp_path / "demo").rglob("*.*")}
    assert {"result.json", "rounds.parquet", "report.html", "metrics.prom"} <= names
    plots = [tmp_path / "demo" / name for name in names if name.endswith(".png")]
    assert len(plots) == 4
    assert all(plot.read_bytes().startswith(b"\x89PNG\r\n") for plot in plots)


def test_the_table_has_one_row_per_device_and_round(result: DemoResult, tmp_path: Path) -> None:
    write_result(result, tmp_path)
    table = pq.read_table(tmp_path / "rounds.parquet")
    assert table.num_rows == 80
    assert set(table["round"].to_pylist()) == {0, 1, 2, 3}
    assert sum(table["payload_bytes"].to_pylist()) == 20 * 200 * 2 + 40 * 200


class _References(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in {"src", "href"}]


def test_the_page_loads_nothing_from_elsewhere_and_escapes_names(
    result: DemoResult, tmp_path: Path
) -> None:
    write_result(result, tmp_path)
    text = (tmp_path / "report.html").read_text()
    references = _References()
    references.feed(text)
    assert len(references.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in references.sources)
    assert "large &lt;all&gt;" in text
    assert "large <all>" not in text
    assert "45.0 %" in page(result, {})


def test_the_metrics_are_in_prometheus_text_format(result: DemoResult) -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(prometheus(result))
        for sample in family.samples
    }
    after = accuracy_of(result.final_scores)
    assert samples["tinyfleet_held_out_accuracy", "median", "after"] == after.median
    assert samples["tinyfleet_deltas", "accepted"] == result.deltas.accepted
    assert samples["tinyfleet_devices",] == result.devices
