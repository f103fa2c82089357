"""The result folder: result.json, tables, plots, a one-page report, Prometheus text."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fleet.demo.plots import PLOTS
from fleet.demo.result import (
    SRAM_PURPOSES,
    DemoResult,
    DeviceRound,
    accuracy_of,
    by_plan,
    plan_names,
    plan_of_device,
    summary,
    traffic_of,
    uplink_bytes,
)

_DPI = 120
_ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24 }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2rem }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.fact { border: 1px solid #d5dae0; border-radius: 8px; padding: .6rem 1rem; flex: 1 1 11rem }
.fact b { display: block; font-size: 1.3rem; white-space: nowrap }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid #e3e7eb }
th { vertical-align: bottom } td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem }
.plots img { width: 100% }
.scroll { overflow-x: auto }
small { color: #57606a }
"""


def write_result(result: DemoResult, out: Path) -> None:
    """Write the whole result folder; files of an earlier run are replaced.

    `result.json`, `rounds.parquet` (one row per device and round; rounds 0 and `rounds` + 1 only
    score), `plots/*.png`, `report.html`, `metrics.prom`.
    """
    plots = out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(summary(result), indent=2) + "\n"
    (out / "result.json").write_text(facts, encoding="utf-8")
    write_parquet(result, out / "rounds.parquet")
    images = {}
    for name, draw in PLOTS.items():
        buffer = io.BytesIO()
        draw(result).savefig(buffer, format="png", dpi=_DPI)
        images[name] = buffer.getvalue()
        (plots / f"{name}.png").write_bytes(images[name])
    (out / "report.html").write_text(page(result, images), encoding="utf-8")
    (out / "metrics.prom").write_text(prometheus(result), encoding="utf-8")


def write_parquet(result: DemoResult, path: Path) -> None:
    """One row per device and round, in the order first scores, rounds, final scores."""
    rows = [*result.first_scores, *result.device_rounds, *result.final_scores]
    schema = pa.schema(
        [(field.name, _ARROW_TYPES[str(field.type)]) for field in fields(DeviceRound)]
    )
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    pq.write_table(table, path, compression="zstd")


def page(result: DemoResult, images: dict[str, bytes]) -> str:
    """The one-page report; everything it shows is inside of it."""
    before, after = accuracy_of(result.first_scores), accuracy_of(result.final_scores)
    dense = result.dense_fp32_bytes
    middle = next((plan for plan, name in plan_names(result).items() if name == "middle"), None)
    whose = "middle plan" if middle else "all plans"
    traffic = traffic_of(result, middle)
    boards = sorted({plan.board for plan in result.plans})
    facts = [
        ("median device", f"{percent(before.median)} → {percent(after.median)}"),
        ("worst tenth", f"{percent(before.worst_tenth)} → {percent(after.worst_tenth)}"),
        (f"delta per device and round, {whose}", f"{traffic.payload_up:,.0f} bytes"),
        (f"of a dense fp32 update, {whose}", fraction(traffic.payload_up, dense)),
    ]
    shown = "".join(
        f'<div class="fact"><small>{_e(k)}</small><b>{_e(v)}</b></div>' for k, v in facts
    )
    pictures = "".join(
        f'<img alt="{_e(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in images.items()
    )
    deltas = result.deltas
    refused = ", ".join(f"{reason} {count}" for reason, count in sorted(deltas.refused.items()))
    declined = ", ".join(f"{reason} {count}" for reason, count in sorted(deltas.declined.items()))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tinyfleet: {result.devices} microcontrollers, {result.rounds} rounds</title>
<style>{_STYLE}</style></head><body>
<h1>{result.devices} microcontrollers learned together</h1>
<p>{result.rounds} rounds in {result.seconds:,.0f} s on {_e(" and ".join(boards))}, seed
{result.seed}. Accuracy is measured by each device on its own held-out samples.</p>
<div class="facts">{shown}</div>
<div class="plots">{pictures}</div>
<h2>Plans</h2>
<div class="scroll">{html_table(PLAN_COLUMNS, plan_rows(result))}</div>
<h2>Link, bytes per device and round</h2>
<div class="scroll">{html_table(LINK_COLUMNS, link_rows(result))}</div>
<p><small>{_e(LINK_NOTE.format(dense=dense))}</small></p>
<h2>SRAM by purpose, bytes</h2>
<div class="scroll">{html_table(SRAM_COLUMNS, sram_rows(result))}</div>
<h2>Rounds</h2>
<div class="scroll">{html_table(ROUND_COLUMNS, round_rows(result))}</div>
<p>Deltas: {deltas.accepted} accepted, {deltas.late} late, {deltas.duplicate} duplicate,
{sum(deltas.refused.values())} refused{f" ({_e(refused)})" if refused else ""},
{sum(deltas.declined.values())} declined by the device{f" ({_e(declined)})" if declined else ""}.
Firmware compiled with {_e(result.compiler)}.</p>
{"".join(f"<p>{_e(line)}</p>" for line in result.privacy)}
<p><small>Figures of single devices: <code>rounds.parquet</code>; for programs:
<code>result.json</code>.</small></p>
</body></html>
"""


PLAN_COLUMNS = (
    "plan",
    "board",
    "devices",
    "accuracy before",
    "accuracy after",
    "SRAM / limit",
    "instructions per step",
)
LINK_COLUMNS = (
    "plan",
    "delta values",
    "delta payload",
    "of dense fp32",
    "whole link up",
    "of dense fp32",
    "whole link down",
    "of dense fp32",
)
LINK_NOTE = (
    "Dense fp32: {dense:,} bytes, 4 per parameter. Whole link: every byte on the UART from power "
    "on to the end (MQTT, CBOR, acknowledgements, announce, status, weights, both scoring rounds), "
    "per training round."
)
SRAM_COLUMNS = ("plan", "board", *SRAM_PURPOSES, "total", "limit")
ROUND_COLUMNS = ("round", "asked", "accepted", "stragglers", "seconds", "before", "after training")


def plan_rows(result: DemoResult) -> list[list[str]]:
    """One row per plan and board, as text."""
    plan_of = plan_of_device(result)
    rows = []
    for plan in result.plans:
        key = (plan.id, plan.board)
        scores = [
            accuracy_of(s for s in scored if (plan_of.get(s.device), s.board) == key).median
            for scored in (result.first_scores, result.final_scores)
        ]
        rows.append(
            [
                plan.name,
                plan.board,
                f"{plan.devices}",
                *(percent(score) for score in scores),
                f"{kibibytes(plan.sram_total_bytes)} / {kibibytes(plan.sram_limit_bytes)}",
                f"{plan.instructions_per_step:,}",
            ]
        )
    return rows


def link_rows(result: DemoResult) -> list[list[str]]:
    """Mean bytes per device and training round of each plan, as text; see `Traffic`."""
    values = {plan.id: plan.delta_values for plan in result.plans}
    rows = []
    for plan, name in plan_names(result).items():
        traffic = traffic_of(result, plan)
        row = [name, f"{values[plan]:,}"]
        for sent in (traffic.payload_up, traffic.link_up, traffic.link_down):
            row += [f"{sent:,.0f}" if sent else "n/a", fraction(sent, result.dense_fp32_bytes)]
        rows.append(row)
    return rows


def headline(result: DemoResult) -> list[str]:
    """What the run is about, in two lines: the gain, and the uplink of the middle plan."""
    before, after = accuracy_of(result.first_scores), accuracy_of(result.final_scores)
    lines = [
        f"Median accuracy on the devices' own held-out samples: {percent(before.median)} → "
        f"{percent(after.median)} ({100 * (after.median - before.median):+.1f} points); worst "
        f"tenth {percent(before.worst_tenth)} → {percent(after.worst_tenth)}."
    ]
    dense = result.dense_fp32_bytes
    for plan, name in plan_names(result).items():
        traffic = traffic_of(result, plan)
        if name == "middle" and traffic.payload_up:
            whole = (
                f", {traffic.link_up:,.0f} with everything on the link "
                f"({fraction(traffic.link_up, dense)})"
                if traffic.link_up
                else ""
            )
            lines.append(
                f"Uplink of the middle plan per device and round: {traffic.payload_up:,.0f} bytes "
                f"of delta ({fraction(traffic.payload_up, dense)} of dense fp32){whole}."
            )
    return lines


def sram_rows(result: DemoResult) -> list[list[str]]:
    """SRAM of each plan and board by purpose, as text."""
    return [
        [
            plan.name,
            plan.board,
            *(f"{plan.sram_bytes.get(purpose, 0):,}" for purpose in SRAM_PURPOSES),
            f"{plan.sram_total_bytes:,}",
            f"{plan.sram_limit_bytes:,}",
        ]
        for plan in result.plans
    ]


def round_rows(result: DemoResult) -> list[list[str]]:
    """One row per training round, as text."""
    rows = []
    for facts in result.round_facts:
        scored = [row for row in result.device_rounds if row.round == facts.round]
        after = sum(row.correct_after for row in scored)
        before = sum(row.correct_before for row in scored)
        held = sum(row.held_out for row in scored)
        rows.append(
            [
                f"{facts.round}",
                f"{facts.asked}",
                f"{facts.accepted}",
                f"{facts.stragglers}",
                f"{facts.seconds:.1f}",
                *(percent(count / held) if held else "n/a" for count in (before, after)),
            ]
        )
    return rows


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of texts, escaped."""
    head = "".join(f"<th>{_e(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_e(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def prometheus(result: DemoResult) -> str:
    """The figures in Prometheus' text format, for a node exporter's textfile collector."""
    registry = CollectorRegistry()

    def metric(name: str, meaning: str, samples: Iterable[tuple[dict[str, str], float]]) -> None:
        gauge: Gauge | None = None
        for labels, value in samples:
            gauge = gauge or Gauge(f"tinyfleet_{name}", meaning, list(labels), registry=registry)
            (gauge.labels(**labels) if labels else gauge).set(value)

    before, after = accuracy_of(result.first_scores), accuracy_of(result.final_scores)
    metric("devices", "Devices of the campaign.", [({}, result.devices)])
    metric("rounds", "Training rounds of the campaign.", [({}, result.rounds)])
    metric(
        "held_out_accuracy",
        "Accuracy of the devices on their own held-out samples.",
        [
            ({"statistic": statistic, "when": when}, getattr(accuracy, statistic))
            for when, accuracy in (("before", before), ("after", after))
            for statistic in ("median", "worst_tenth")
        ],
    )
    metric(
        "uplink_bytes",
        "Mean payload bytes sent per device and training round.",
        [
            ({"plan": plan[:12]}, uplink_bytes(rows))
            for plan, rows in by_plan(result.device_rounds).items()
        ],
    )
    for direction in ("up", "down"):
        metric(
            f"link_{direction}_bytes",
            f"Mean bytes {direction} on the whole link per device and training round.",
            [
                ({"plan": plan[:12]}, getattr(traffic_of(result, plan), f"link_{direction}"))
                for plan in plan_names(result)
            ],
        )
    metric(
        "sram_bytes",
        "SRAM of the firmware with the plan on the board.",
        [
            ({"plan": plan.id[:12], "board": plan.board}, plan.sram_total_bytes)
            for plan in result.plans
        ],
    )
    metric(
        "deltas",
        "Deltas by what became of them.",
        [
            ({"outcome": "accepted"}, result.deltas.accepted),
            ({"outcome": "late"}, result.deltas.late),
            ({"outcome": "duplicate"}, result.deltas.duplicate),
            ({"outcome": "refused"}, sum(result.deltas.refused.values())),
        ],
    )
    return generate_latest(registry).decode()


def percent(share: float) -> str:
    """A share as a percentage; n/a where nothing was measured."""
    return "n/a" if share != share else f"{100 * share:.1f} %"


def fraction(sent: float, dense: int) -> str:
    """Bytes as one part of a dense fp32 update, such as 1/75."""
    if not sent:
        return "n/a"
    parts = dense / sent
    return f"1/{parts:,.1f}" if parts < 10 else f"1/{parts:,.0f}"


def kibibytes(size: int) -> str:
    """Bytes as KiB."""
    return f"{size / 1024:,.0f} KiB"


def _e(text: str) -> str:
    return html.escape(text, quote=True)
