"""What reports say of models that devices have for themselves."""

from __future__ import annotations

from fleet.campaign.answers import Report
from fleet.campaign.stages import paired_scores
from fleet.coordinator.scores import summarise, what_it_says
from fleet.protocol.numbers import KEPT_WITH_LOCAL, KEPT_WITH_PERSONAL, Kept


def report(device: str, kept: int, before: int, after: int, local: int = 0) -> Report:
    return Report(
        device=device,
        plan="ab" * 32,
        train_samples=0,
        held_out=10,
        correct_before=before,
        correct_after=after,
        correct_local=local,
        kept=kept,
        coded_bytes=0,
        payload_bytes=100,
        seconds=1.0,
    )


def test_scores_that_were_not_measured_are_none_and_not_nought() -> None:
    reports = [
        report("plain", 0, 5, 6),
        report("chose-shared", Kept.SHARED | KEPT_WITH_PERSONAL, 5, 4),
        report("chose-own", Kept.LOCAL | KEPT_WITH_PERSONAL | KEPT_WITH_LOCAL, 5, 6, 9),
        report("none-right", Kept.PERSONAL | KEPT_WITH_PERSONAL | KEPT_WITH_LOCAL, 1, 2, 0),
    ]
    rows = [what_it_says(one, has_accuracy=True) for one in reports]
    told = {row["device"]: (row["kept"], row["correct_local"]) for row in rows}
    assert told == {
        "plain": (None, None),
        "chose-shared": ("shared", None),
        "chose-own": ("local", 9),
        "none-right": ("personal", 0),
    }
    summary = summarise(rows)
    assert summary["kept"] == {"shared": 1, "local": 1, "personal": 1}
    assert summary["median_accuracy_local"] == 0.45
    assert summarise(rows[:1])["median_accuracy_local"] is None


def test_a_model_of_values_has_losses_and_no_accuracy() -> None:
    rows = [what_it_says(report("sensor", 0, 10, 10), has_accuracy=False)]
    assert (rows[0]["correct_before"], rows[0]["correct_after"]) == (None, None)
    assert rows[0]["held_out"] == 10
    assert summarise(rows)["median_accuracy_before"] is None
    assert paired_scores(rows, rows, {}) == []
    assert rows[0]["loss_before"] == 0.0
    inferring = what_it_says(report("sensor", 0, 10, 10), has_accuracy=False, has_loss=False)
    assert (inferring["loss_before"], inferring["loss_after"]) == (None, None)
