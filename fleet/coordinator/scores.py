"""What a round's reports say, in figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet.campaign.answers import Report
from fleet.protocol.numbers import KEPT_WITH_LOCAL, kept_of


def accuracies(reports: Iterable[Mapping[str, Any]], field: str) -> dict[str, float]:
    """Accuracy per device on its own held-out samples; `field` is `correct_before` and the like."""
    return {
        str(one["device"]): int(one[field]) / int(one["held_out"])
        for one in reports
        if int(one.get("held_out") or 0) > 0 and one.get(field) is not None
    }


def what_it_says(report: Report, has_accuracy: bool, has_loss: bool = True) -> dict[str, Any]:
    """A report with None where it has nothing to say: right answers and losses of a model without
    them, and what models do that its device doesn't have."""
    said: dict[str, Any] = {
        **dict(report),
        "correct_local": report.correct_local if report.kept & KEPT_WITH_LOCAL else None,
        "kept": kept_of(report.kept) if report.kept else None,
    }
    if not has_accuracy:
        said |= dict.fromkeys(("correct_before", "correct_after", "correct_local"))
    if not has_loss:
        said |= dict.fromkeys(("loss_before", "loss_after"))
    return said


def worst_tenth(values: Sequence[float]) -> float:
    """Mean of the lowest tenth of the values (at least one). Raises on an empty sequence."""
    count = max(1, len(values) // 10)
    return statistics.fmean(sorted(values)[:count])


def summarise(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and worst-tenth accuracy before and after training, and with what devices trained
    alone; None without reports. `kept` counts devices by what they work with."""
    summary: dict[str, Any] = {}
    for name in ("before", "after", "local"):
        values = list(accuracies(reports, f"correct_{name}").values())
        summary[f"median_accuracy_{name}"] = statistics.median(values) if values else None
        summary[f"worst_tenth_accuracy_{name}"] = worst_tenth(values) if values else None
    summary["kept"] = dict(Counter(str(one["kept"]) for one in reports if one.get("kept")))
    summary["coded_bytes"] = sum(int(one.get("coded_bytes") or 0) for one in reports)
    summary["payload_bytes"] = sum(int(one.get("payload_bytes") or 0) for one in reports)
    return summary


def add_counts(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counters of several gateways' collect answers added up."""
    total: dict[str, Any] = {"accepted": 0, "late": 0, "duplicate": 0}
    refused: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    for answer in answers:
        for name in total:
            total[name] += int(answer.get(name, 0))
        refused.update(answer.get("refused", {}))
        declined.update(answer.get("declined", {}))
    return {**total, "refused": dict(refused), "declined": dict(declined)}
