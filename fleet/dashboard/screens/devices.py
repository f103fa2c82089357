"""One device: what is known of it, what it has done, and what may be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.dashboard.charts import Chart, lines
from fleet.dashboard.errors import REFUSALS, beside_form
from fleet.dashboard.formats import clock, loss, percent
from fleet.dashboard.page import Context, GoTo, Page, Screens, Show
from fleet.dashboard.screens.fleet import STATES, state_of
from fleet.service.schema import HistoryEntry

screens = Screens("fleet")
ROUNDS_AT_ONCE = 20
_LABEL = "label."
"""What fields of labels begin with; the label's name follows."""


@dataclass(frozen=True)
class Had:
    """Weights that a device began rounds with, from when to when (Unix times)."""

    version: str
    weights: str
    first: float
    last: float
    rounds: int


@screens.page("/devices/{device}", "device.html", "{device}")
def device(page: Page) -> Context:
    """A device with its history."""
    return _context(page)


def _context(page: Page, mistake: str = "") -> Context:
    """With what the form of labels was filled with, where it was refused."""
    name, form = page.path["device"], page.form
    found = page.api.device(name)
    history = page.api.device_history(name)
    return {
        "device": found,
        "state": STATES[state_of(found)],
        "record": page.api.device_record(name),
        "history": history,
        "rounds_at_once": ROUNDS_AT_ONCE,
        "scores": scores(history),
        "versions": versions(history),
        "labels": {**found.labels, **_labels(form)},
        "new_name": form.get("new_name", ""),
        "new_value": form.get("new_value", ""),
        "why": form.get("why", ""),
        "mistake": mistake,
    }


def _labels(form: Mapping[str, str]) -> dict[str, str]:
    """As they were typed into their fields."""
    return {
        field.removeprefix(_LABEL): value.strip()
        for field, value in form.items()
        if field.startswith(_LABEL)
    }


def scores(history: Sequence[HistoryEntry]) -> Chart | None:
    """What the device measured on its held-out samples, before it trained and afterwards.

    Accuracy; of a model that has none its loss. Rounds stand side by side in the order in which
    they ended: campaigns take minutes, and lie weeks apart.
    """
    rounds = [one for one in reversed(history) if one.ended is not None and one.held_out]
    right = any(one.correct_before is not None for one in rounds)
    before, after, campaigns = [], [], []
    for at, one in enumerate(rounds):
        assert one.held_out
        first, last = one.loss_before, one.loss_after
        if right:
            first = _share(one.correct_before, one.held_out)
            last = _share(one.correct_after, one.held_out)
        if first is not None:
            before.append((float(at), first))
        if last is not None and one.train_steps:
            after.append((float(at), last))
        if at == 0 or rounds[at - 1].campaign != one.campaign:
            campaigns.append((float(at), one.name or one.campaign))
    shown: Callable[[float], str] = percent if right else loss
    told = ""
    if before:
        told = (
            f"{len(before)} scores: {shown(before[0][1])} of its held-out samples were right at "
            f"first, {shown(before[-1][1])} the last time."
            if right
            else f"{len(before)} scores: a loss of {shown(before[0][1])} on its held-out samples "
            f"at first, {shown(before[-1][1])} the last time."
        )
    series = {"before training": before, "after training": after}
    return lines(
        f"{'Accuracy' if right else 'Loss'} on its own held-out samples, round by round",
        told,
        {name: points for name, points in series.items() if points},
        over="round",
        x_text=lambda at: _round(rounds[round(at)]),
        y_text=(lambda share: f"{100 * share:.0f} %") if right else loss,
        x_marks=campaigns,
    )


def _share(right: int | None, of: int) -> float | None:
    return None if right is None else right / of


def _round(one: HistoryEntry) -> str:
    return f"{one.name or one.campaign} {one.round}, {clock(one.ended or 0.0)}"


def versions(history: Sequence[HistoryEntry]) -> list[Had]:
    """The weights of its rounds, newest first."""
    found: dict[str, Had] = {}
    for one in reversed(history):
        if one.weights and one.ended is not None:
            known = found.pop(one.weights, None)
            found[one.weights] = Had(
                one.version or "",
                one.weights,
                known.first if known else one.ended,
                one.ended,
                known.rounds + 1 if known else 1,
            )
    return list(reversed(found.values()))


@screens.action("/devices/{device}/labels")
def label(page: Page) -> GoTo | Show:
    """Set labels; what is left empty is taken away."""
    name = page.path["device"]
    wanted = _labels(page.form)
    new = page.form.get("new_name", "").strip()
    if new:
        wanted[new] = page.form.get("new_value", "").strip()
    if not wanted:
        return GoTo(f"/devices/{name}", "Nothing was changed.")
    try:
        page.api.label_device(name, {key: value or None for key, value in wanted.items()})
    except REFUSALS as error:
        mistake, status = beside_form(error)
        return Show("device.html", name, _context(page, mistake), status)
    return GoTo(f"/devices/{name}", "The labels are changed.")


@screens.action("/devices/{device}/retire")
def retire(page: Page) -> GoTo | Show:
    """Take it out of everything."""
    name = page.path["device"]
    page.api.retire_device(name)
    return GoTo(f"/devices/{name}", f"{name} is retired; its broker lets it in no more.")


@screens.action("/devices/{device}/rotate")
def rotate(page: Page) -> GoTo | Show:
    """A new password, told once."""
    name = page.path["device"]
    return Show("password.html", name, {"password": page.api.rotate_device(name)})


@screens.action("/devices/{device}/erase")
def erase(page: Page) -> GoTo | Show:
    """Forget it, once it is retired."""
    name = page.path["device"]
    page.api.erase_device(name)
    return GoTo("/fleet", f"{name} and all that it reported is forgotten.")
