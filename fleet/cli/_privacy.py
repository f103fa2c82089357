"""`tinyfleet privacy`: what was spent of devices' privacy, and what a campaign would cost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet.campaign import CampaignConfig
from fleet.campaign.files import read_campaign
from fleet.cli._campaign import find
from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, table
from fleet.service.client import Client
from fleet.service.privacy_schema import PrivacyPage, PrivacyPlan


def show(
    client: Client, device: str, campaign: str, after: str, limit: int, *, as_json: bool
) -> None:
    """What was spent, by device and campaign."""
    of = find(client, campaign) if campaign else ""
    page = client.privacy(device, of, after, limit)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    screen = console()
    columns = ["device", "campaign", "rounds", "ε of it", "at δ", "ε of all", "budget", "left"]
    screen.print(table("Spent of devices' privacy", columns, list(_rows(page))))
    if page.next:
        screen.print(f"More with --after {page.next}.", soft_wrap=True)
    for gap in page.gaps:
        screen.print(
            f"The store was restored: rounds between {_at(gap.since)} and {_at(gap.until)} may be "
            "missing here.",
            soft_wrap=True,
        )
    screen.print(f"Not covered by ε: {page.not_covered}.", soft_wrap=True)


def _rows(page: PrivacyPage) -> Iterator[list[object]]:
    for device in page.devices:
        for one in device.campaigns:
            yield [
                device.device,
                f"{one.name} ({one.campaign[:8]})",
                one.rounds,
                f"{one.epsilon:.2f}",
                f"{one.delta:g}",
                f"{one.epsilon_of_all:.2f}",
                "none" if one.budget_epsilon is None else f"{one.budget_epsilon:g}",
                "" if one.budget_left is None else f"{one.budget_left:.2f}",
            ]


def _at(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix))


def plan(
    client: Client | None, file: Path, virtual: Path | None, out: Path, *, as_json: bool
) -> None:
    """What a campaign would cost, by a service's devices, by an experiment or both."""
    config = read_campaign(file)
    if config.privacy is None:
        raise CommandError(f"{file} has no privacy: docs/howto/private-campaign.md says what it is")
    found = client.plan_privacy(config) if client else None
    lost = _run_virtual(config, virtual, out, hidden=as_json) if virtual else None
    if as_json:
        told = {"plan": found.model_dump(mode="json") if found else None, "virtual": lost}
        print_json(told)
        return
    if found:
        _print_plan(found)
    if lost is not None:
        _print_virtual(lost, out)


def _print_plan(found: PrivacyPlan) -> None:
    screen = console()
    share = "each device's share" if found.noise == "devices" else "what the coordinator adds"
    screen.print(
        f"Clip {found.clip:,}{', which follows the norms' if found.is_adaptive else ''}; noise of "
        f"{found.noise_multiplier:g} clips in a sum, {share} of variance {found.noise_variance:,}, "
        f"in sets of at least {found.least_devices}. In the mean of {found.cohort} devices the "
        f"noise is {found.noise_to_clip:.2g} clips long, and what they have learned one at most.",
        soft_wrap=True,
    )
    rows = [
        [one.observer, f"{one.round_epsilon:.3f}", f"{one.epsilon:.2f}", one.sees]
        for one in found.observers
    ]
    title = f"ε at δ = {found.delta:g} of a device that has a part in all {found.rounds} rounds"
    screen.print(table(title, ["observer", "a round", "all rounds", "sees"], rows))
    if found.expected_rounds < found.rounds:
        screen.print(
            f"Cohorts are drawn: a device has a part in about {found.expected_rounds:.1f} rounds.",
            soft_wrap=True,
        )
    if found.budget_epsilon is not None:
        whole = found.ready - found.short - found.spent
        screen.print(
            f"Budget ε {found.budget_epsilon:g}: {found.rounds_within_budget} rounds of a device "
            f"that has spent nothing. Of {found.ready:,} devices that could take part {whole:,} "
            f"have enough for all rounds, {found.short:,} for some, {found.spent:,} for none.",
            soft_wrap=True,
        )
    for one in found.warnings:
        screen.print(f"Mind: {one}.", soft_wrap=True)
    screen.print(found.promise, soft_wrap=True)


def _run_virtual(
    config: CampaignConfig, experiment: Path, out: Path, *, hidden: bool
) -> list[dict[str, Any]]:
    """The experiment with the campaign's noise and without, as two points of a sweep."""
    said = json.dumps({**config.as_file()["privacy"], "budget_epsilon": None})
    command = [sys.executable, "-m", "fleet.cli", "experiment", "sweep", str(experiment)]
    for field, values in (
        ("coding", "masked"),
        ("weighting", "uniform"),
        ("privacy", f"null,{said}"),
    ):
        command += ["--vary", f"defaults.{field}={values}"]
    command += ["--out", str(out), "--json"]
    if not hidden:
        console().print(f"Runs {experiment} without noise, and with it.", soft_wrap=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{experiment} didn't run to its end; see above")
    return list(_lost(json.loads(done.stdout)["series"]))


def _lost(series: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each strategy the accuracies in the end, means over seeds, without noise and with it."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for one in series:
        runs.setdefault(one["strategy"], []).append(one)
    for strategy, (without, noisy) in runs.items():
        figures: dict[str, Any] = {"strategy": strategy, "seeds": len(noisy["seeds"])}
        for name, of in (("without", without), ("with_noise", noisy)):
            for measure in ("mean", "worst_tenth"):
                ends = [one["accuracy"][measure] for one in of["last"] if one]
                figures[f"{name}_{measure}"] = sum(ends) / len(ends) if ends else None
        yield figures


def _print_virtual(lost: list[dict[str, Any]], out: Path) -> None:
    rows = [
        [
            one["strategy"],
            one["seeds"],
            *(
                _percent(one[f"{name}_{measure}"])
                for measure in ("mean", "worst_tenth")
                for name in ("without", "with_noise")
            ),
        ]
        for one in lost
    ]
    columns = ["strategy", "seeds", "mean", "with noise", "worst tenth", "with noise "]
    screen = console()
    screen.print(table("Accuracy of virtual devices, in percent", columns, rows))
    screen.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"
