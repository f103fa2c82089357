"""The dashboard over a registry of very many devices: its pages, and people who watch them.

    python -m benchmarks.dashboard [--devices 100000] [--url URL] [--watchers 20] [--seconds 30]
                                   [--page PATH ...] [--json]

Without a URL the database is an SQLite file of its own. The service runs in a process of its own,
with its API and the dashboard on one port. Times are of whole pages as they are sent, in
milliseconds; each is asked for anew, so that nothing is kept from before. Watchers ask for the live
parts of a page every two seconds, each with a token of their own, while devices are heard of and
deltas come in; CPU is that of the service's process, of one core. Where there is a Chromium, pages
are also loaded in it, and as many of its tabs as there are watchers watch the campaign.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np

from benchmarks.dashboard import in_browser
from benchmarks.dashboard.service import service
from benchmarks.gateway.site import Usage
from benchmarks.registry import BOARDS, devices, heard
from fleet.campaign import CampaignConfig, RoundMachine, RoundPlan, schedule
from fleet.campaign.planning import Assignment
from fleet.cli._output import console, table
from fleet.coordinator.progress import progress_of
from fleet.service.operations import Actor, Operations
from fleet.service.schema import BundleToImport
from fleet.store import (
    Audit,
    Gateways,
    Member,
    Registry,
    SqlStore,
    Stages,
    Tokens,
    WeightsVersion,
    sqlite_url,
)
from tests.fleet.coordinator import small_model
from tests.fleet.dashboard.browser import chromium

WANTED_MILLISECONDS = 300
WANTED_SHARE = 0.2
REPEATS = 15
EVERY_SECONDS = 2.0
HEARD_EACH_SECOND = 50
SITES = 50
AUDIT_ENTRIES = 100_000
DRIVER, MODEL = "driver", "bench"
FILTER = 'labels.room == "north" && battery_percent >= 30'


def tokens(store: SqlStore, count: int) -> list[str]:
    return [Tokens(store).issue(f"p{n}", "operator", 86_400.0)[1] for n in range(count)]


def browser(address: str, store: SqlStore, who: str) -> httpx.Client:
    _, token = Tokens(store).issue(who, "operator", 86_400.0)
    return httpx.Client(
        base_url=address, cookies={"tinyfleet_token": token}, timeout=60, trust_env=False
    )


def of_pages(address: str, store: SqlStore, pages: dict[str, str]) -> dict[str, float]:
    """Median and 90th percentile of each page, and its size."""
    figures = {}
    with browser(address, store, "reader") as one:
        for name, path in pages.items():
            took = []
            size = 0
            for number in range(-1, REPEATS):
                anew = f"{path}{'&' if '?' in path else '?'}anew={number}"
                start = time.perf_counter()
                answer = one.get(anew)
                if number >= 0:  # the first compiles templates
                    took.append(1000 * (time.perf_counter() - start))
                assert answer.status_code == 200, answer.text
                size = len(answer.content)
            figures[f"{name}: median ms"] = statistics.median(took)
            figures[f"{name}: p90 ms"] = statistics.quantiles(took, n=10)[-1]
            figures[f"{name}: kB"] = size / 1000
    return figures


@dataclass(frozen=True)
class Running:
    """A round that is under way."""

    campaign: str
    number: int
    told: dict[str, object]


@contextmanager
def hearing(store: SqlStore, count: int, running: Running) -> Iterator[None]:
    """Devices are heard of meanwhile, and deltas of the round come in."""
    is_over = threading.Event()

    def hear() -> None:
        registry, at = Registry(store), 0
        while not is_over.wait(1.0):
            now = time.time()
            news = heard(HEARD_EACH_SECOND, now)
            # Names from anywhere in the registry.
            wanted = [f"mcu-{(at + 1999 * n) % count:07}" for n in range(HEARD_EACH_SECOND)]
            at += 1
            fresh = [one.model_copy(update={"last_seen": now}) for one in news.values()]
            registry.observe(dict(zip(wanted, fresh, strict=True)))
            accepted = min(count, count // 2 + HEARD_EACH_SECOND * at)
            store.note_progress(running.campaign, DRIVER, running.number, accepted, running.told)

    thread = threading.Thread(target=hear)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def share_of_a_core(pid: int, seconds: float) -> float:
    """What the service takes from now on."""
    before, start = Usage.of(pid), time.monotonic()
    time.sleep(seconds)
    return (Usage.of(pid) - before).cpu_seconds / (time.monotonic() - start)


def watch(
    address: str, pid: int, store: SqlStore, path: str, watchers: int, seconds: float
) -> dict[str, float]:
    """What people cost who have a page open: clients that ask as its script does."""
    is_over = threading.Event()
    answers: list[tuple[int, float]] = []

    def look(number: int) -> None:
        with browser(address, store, f"watcher-{number}") as one:
            tag = ""
            is_over.wait(EVERY_SECONDS * number / watchers)
            while not is_over.is_set():
                headers = {"X-Tinyfleet-Live": "1", "If-None-Match": tag}
                start = time.perf_counter()
                answer = one.get(path, headers=headers)
                answers.append((answer.status_code, time.perf_counter() - start))
                tag = answer.headers.get("ETag", "")
                is_over.wait(EVERY_SECONDS)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(watchers)]
    for thread in threads:
        thread.start()
    time.sleep(2 * EVERY_SECONDS)
    share = share_of_a_core(pid, seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} <= {200, 304}
    times = [1000 * one for _, one in answers]
    return {
        f"{watchers} watch {path}: share of a core": share,
        f"{watchers} watch {path}: median ms": statistics.median(times),
        f"{watchers} watch {path}: answers that bring something": statistics.fmean(
            status == 200 for status, _ in answers
        ),
    }


def fill(store: SqlStore, count: int) -> None:
    registry, gateways = Registry(store), Gateways(store)
    operations = Operations(store, "bench")
    weights = base64.b64encode(small_model.blob()).decode()
    bundles = {}
    for board in BOARDS:
        manifest = small_model.manifest(board)
        bundle = BundleToImport(model=MODEL, manifest=json.dumps(manifest), weights=weights)
        operations.import_bundle(Actor("ann", "admin", ""), bundle)
        bundles[board] = manifest["bundle_id"]
    registry.add(devices(count))
    news = heard(count, time.time())
    registry.observe(
        {
            name: one.model_copy(update={"bundle": bundles[one.board or ""]})
            for name, one in news.items()
        }
    )
    for number in range(SITES):
        gateways.add(f"gw-{number}", f"site-{number}")
        gateways.seen(f"gw-{number}")


def add_campaign(store: SqlStore, count: int) -> Running:
    """A campaign of all devices that has trained and is being scored, and its fleet's audit log."""
    gates = ({"gate": "score"}, {"gate": "failures"})
    stages = ({"name": "canary", "devices": 100, "gates": gates}, {"name": "all", "share": 1.0})
    config = CampaignConfig.model_validate(
        {"name": "bench", "model": MODEL, "rounds": 3, "stages": stages, "deadline_seconds": 7200}
    )
    campaign, driver = "0123456789abcdef", DRIVER
    weights = WeightsVersion(0, "0" * 64, bytes(50_000), b"")
    store.create_campaign(campaign, config.model_dump_json(), {}, weights, "ann", f"{MODEL}:1")
    store.claim(campaign, driver)
    names = [f"mcu-{number:07}" for number in range(count)]
    members = [Member(name, number >= 100, "0" * 64) for number, name in enumerate(names)]
    Stages(store).save_members(campaign, members)
    steps = [step for step in schedule(config) if step.stage == 1]
    for step in steps:
        assignments = tuple(
            Assignment(name, f"gw-{number % SITES}", "b" * 64, "p" * 64, "no larger plan", 40, 1)
            for number, name in enumerate(names)
        )
        targets = {f"gw-{site}": count // SITES for site in range(SITES)}
        plan = RoundPlan(
            step.number,
            step.kind,
            0,
            "0" * 64,
            count,
            assignments,
            {},
            targets,
            1,
            step.training_round,
        )
        store.begin_round(campaign, driver, step.number, step.kind.value, plan.to_json())
        if step is steps[-1]:
            machine = RoundMachine(plan.gateways(), 0.0, 7200.0, 90.0)
            told = progress_of(plan, machine)
            store.note_progress(campaign, driver, step.number, count // 2, told)
            running = Running(campaign, step.number, told)
            continue
        dice = np.random.default_rng(step.number)
        right = dice.binomial(20, 0.8, count)
        silent = set(names[:: max(1, count // 500)])
        reports = [
            {
                "device": name,
                "gateway": f"gw-{number % SITES}",
                "held_out": 20,
                "correct_before": int(right[number]),
                "correct_after": int(right[number]),
                "payload_bytes": 431,
                "seconds": 20.0,
            }
            for number, name in enumerate(names)
            if name not in silent
        ]
        result = {
            "accepted": len(reports),
            "missing": sorted(silent),
            "failed": dict.fromkeys(silent, "no-report"),
        }
        store.finish_round(campaign, driver, step.number, "done", result, reports, None)
    audit = Audit(store)
    with store.writing():
        for number in range(AUDIT_ENTRIES):
            who, device = f"p{number % 50}", f"device:{names[number % count]}"
            audit.add(who, "operator", "devices.label", device, {"a": 1}, {"a": number}, "why")
    return running


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--url")
    parser.add_argument("--watchers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--page", action="append", help="path below / that is watched")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    last = f"mcu-{options.devices - 60:07}"
    pages = {
        "fleet": "/ui/fleet",
        "fleet, filtered": f"/ui/fleet?filter={quote(FILTER)}",
        "fleet, last page": f"/ui/fleet?after={last}",
        "device": f"/ui/devices/{last}",
    }
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or sqlite_url(Path(folder) / "store.sqlite")
        store = SqlStore(url)
        try:
            fill(store, options.devices)
            running = add_campaign(store, options.devices)
            campaign = running.campaign
            pages |= {
                "campaigns": "/ui/campaigns",
                "campaign, live": f"/ui/campaigns/{campaign}",
                "round": f"/ui/campaigns/{campaign}/rounds/{running.number}",
                "new campaign": "/ui/campaigns/new",
                "campaign, to confirm": f"/ui/campaigns/{campaign}/confirm?do=stop",
                "models": "/ui/models",
                "model": f"/ui/models/{MODEL}",
                "settings": "/ui/settings",
                "audit": "/ui/audit",
                "audit, filtered": "/ui/audit?who=p7&action=devices.label",
            }
            with service(url) as (address, pid):
                figures |= of_pages(address, store, pages)
                if chromium.found():
                    figures |= in_browser.of_pages(tokens(store, 1)[0], address, pages)
                watched = ["/ui/fleet", pages["device"], pages["campaign, live"]]
                with hearing(store, options.devices, running):
                    for path in options.page or watched:
                        figures |= watch(
                            address, pid, store, path, options.watchers, options.seconds
                        )
                    if chromium.found():
                        figures |= in_browser.of_tabs(
                            tokens(store, options.watchers),
                            address,
                            pages["campaign, live"],
                            lambda: share_of_a_core(pid, options.seconds),
                        )
        finally:
            store.close()
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    rows = [[name, f"{value:,.3g}"] for name, value in figures.items()]
    console().print(table(f"{options.devices:,} devices", ["what", "measured"], rows))
    slowest = max(
        value
        for name, value in figures.items()
        if name.endswith("median ms") and "browser" not in name
    )
    console().print(
        f"Slowest median: {slowest:,.0f} ms (wanted: at most {WANTED_MILLISECONDS}); "
        f"watchers may take {100 * WANTED_SHARE:.0f} % of a core."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
