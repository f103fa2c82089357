"""The demo from start to end: compile, boot, run the campaign, collect the figures."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from codegen.firmware.bundle import Bundle
from fleet.attach.samples import deal_digits
from fleet.campaign.config import CampaignConfig, Schedule
from fleet.campaign.who_sees import Setting, who_sees
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator, ProgressEvent
from fleet.demo.digits import (
    BOARDS,
    PLANS,
    board_of,
    device_names,
    example_folder,
    population,
)
from fleet.demo.report import write_result
from fleet.demo.result import Deltas, DemoResult, DeviceRound, PlanFacts, RoundFacts
from fleet.demo.site import Site
from fleet.errors import CampaignError, ConfigurationError
from fleet.firmware import compile_firmware
from fleet.store import RoundRecord, SqlStore, Store, sqlite_url
from simulator.errors import SimulatorError
from simulator.machines.measure import Measurement, measure

BOOT_SECONDS = 300.0
ROUND_WAIT_SECONDS = 40.0
"""A message of Flower's waits so long at a gateway. Each is a process that costs 1.5 s of CPU, so
one per round is best; nobody has to reach the gateways meanwhile, since they end with the demo."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class DemoSettings:
    """What a run of the demo is told. The same seed gives the same partition, plans and cohorts."""

    devices: int = 24
    rounds: int = 6
    seed: int = 1
    out: Path = Path("out/demo")
    gateways: tuple[str, ...] = ("gw-east", "gw-west")
    epochs: int = 1
    learning_rate: float = 0.02
    over_selection: float = 0.0
    cohort_share: float = 1.0
    deadline_seconds: int = 180
    private: bool = False
    """Devices have keys, tasks are signed, and deltas are masked."""

    @property
    def least_devices(self) -> int:
        """Of a set: there are three update plans, and some device may fail; 0 without masks."""
        return max(2, self.devices // 4) if self.private else 0


class Watcher(Protocol):
    """Where the demo says how far it is; a terminal, or nothing."""

    def phase(self, name: str, done: int, of: int) -> None:
        """`done` of `of` steps of a phase are done; phases come one after the other."""

    def say(self, text: str) -> None:
        """One line about something that happened."""


class Silence:
    """A watcher that says nothing."""

    def phase(self, name: str, done: int, of: int) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""


@dataclass
class _Stopwatch:
    """Seconds per phase."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - start


def run_demo(settings: DemoSettings, watcher: Watcher | None = None) -> DemoResult:
    """Run the demo and write its result folder.

    Whatever happens, nothing that was started is left running. Raises exceptions of `codegen`,
    `simulator` and `fleet`, and `KeyboardInterrupt` on Ctrl-C and SIGTERM.
    """
    tell = watcher or Silence()
    clock = _Stopwatch()
    began = time.monotonic()
    names = device_names(settings.devices)
    shares = deal_digits(names, settings.seed)
    if settings.out.exists() and not settings.out.is_dir():
        raise ConfigurationError(f"{settings.out} is a file; choose a folder with --out")
    settings.out.mkdir(parents=True, exist_ok=True)
    with _interruptible():
        with clock("compile"):
            bundles = compile_bundles(settings.out / "bundles", tell)
        with clock("measure"):
            measured = measure_plans(bundles, tell)
        sites = assign_gateways(names, settings.gateways)
        store_path = settings.out / "campaign.sqlite"
        for leftover in settings.out.glob("campaign.sqlite*"):
            leftover.unlink()
        store = SqlStore(sqlite_url(store_path))
        try:
            logs = settings.out / "logs"
            with Site(sites, logs, least_devices=settings.least_devices) as site:
                with clock("boot"):
                    folders = {board: bundle.path for board, bundle in bundles.items()}
                    site.boot(population(shares, folders, site.device_passwords, settings.seed))
                    wait_online(site, names, tell)
                with clock("campaign"):
                    campaign = new_campaign(
                        store,
                        campaign_config(settings),
                        {
                            board: (bundle.path / "manifest.json").read_text("utf-8")
                            for board, bundle in bundles.items()
                        },
                        bundles[BOARDS[0]].weights,
                    )
                    run_campaign(store, store_path, site, campaign, settings, tell)
                traffic = site.boards.stats() if site.boards else {}
                memory = sum(
                    worker.pss_bytes or worker.rss_bytes
                    for worker in (site.boards.worker_stats() if site.boards else [])
                )
            result = collect(
                store,
                campaign,
                settings,
                bundles,
                measured,
                seconds=time.monotonic() - began,
                phases=clock.phases,
                bytes_up={name: stats.bytes_up for name, stats in traffic.items()},
                bytes_down={name: stats.bytes_down for name, stats in traffic.items()},
                fleet_memory_bytes=memory,
            )
        finally:
            store.close()
        write_result(result, settings.out)
    return result


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that everything is stopped in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def compile_bundles(folder: Path, tell: Watcher) -> dict[str, Bundle]:
    """Firmware with all plans for every board of the demo, by board."""
    example = example_folder()
    bundles = {}
    for board in BOARDS:

        def progress(stage: str, done: int, of: int, board: str = board) -> None:
            tell.phase(f"compiling for {board}: {stage}", done, of)

        bundles[board] = compile_firmware(
            example / "digits.onnx",
            board,
            [f"{example / 'plans.json'}#{plan}" for plan in PLANS],
            example / "calibration.npz",
            folder / board,
            progress=progress,
        )
    return bundles


def measure_plans(
    bundles: Mapping[str, Bundle], tell: Watcher
) -> dict[tuple[str, str], Measurement]:
    """What every plan's image really needs on every board, by (board, plan id)."""
    wanted = [(board, plan) for board, bundle in bundles.items() for plan in bundle.manifest.plans]
    measured = {}
    for done, (board, plan) in enumerate(wanted):
        tell.phase("measuring images", done, len(wanted))
        measured[board, plan.id] = measure(bundles[board].path, plan.id)
    tell.phase("measuring images", len(wanted), len(wanted))
    return measured


def assign_gateways(names: Sequence[str], gateways: Sequence[str]) -> dict[str, list[str]]:
    """Which devices belong to which gateway's site: in turn."""
    return {gateway: list(names[first :: len(gateways)]) for first, gateway in enumerate(gateways)}


def wait_online(site: Site, names: Sequence[str], tell: Watcher) -> None:
    """Wait until every device has announced itself.

    Raises `SimulatorError` with the fault of a device that stopped, or the names that are missing.
    """
    assert site.boards is not None
    end = time.monotonic() + BOOT_SECONDS
    while True:
        online = site.online()
        tell.phase("booting", len(online), len(names))
        missing = sorted(set(names) - online)
        if not missing:
            return
        check_faults(site)
        if time.monotonic() > end:
            raise SimulatorError(
                f"{len(missing)} of {len(names)} devices did not come online within "
                f"{BOOT_SECONDS:.0f} s: {', '.join(missing[:8])}; logs are in {site.logs}"
            )
        time.sleep(0.2)


def check_faults(site: Site) -> None:
    """Raise `SimulatorError` for a board that stopped with a fault."""
    assert site.boards is not None
    for stats in site.boards.stats().values():
        if stats.fault:
            raise SimulatorError(f"{stats.fault}; logs are in {site.logs}")


def campaign_config(settings: DemoSettings) -> CampaignConfig:
    """The campaign that the demo runs."""
    masks = {"coding": "masked", "masking": {"least_devices": settings.least_devices}}
    return CampaignConfig.model_validate(
        {
            "name": "digits",
            "seed": settings.seed,
            "rounds": settings.rounds,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            # At one rate an epoch makes devices worse in the last rounds.
            "schedule": Schedule(name="cosine"),
            "cohort_share": settings.cohort_share,
            "over_selection": settings.over_selection,
            "deadline_seconds": settings.deadline_seconds,
            # All were online when the campaign began; a few may fail on the way.
            "min_devices": max(1, settings.devices * 3 // 4),
            **(masks if settings.private else {}),
        }
    )


def run_campaign(
    store: Store, store_path: Path, site: Site, campaign: str, settings: DemoSettings, tell: Watcher
) -> None:
    """Run the campaign to its end. Raises `CampaignError` where it ends without success."""
    accepted = partial(site.accepted, campaign)
    with RoundProgress(accepted, settings.rounds, tell) as rounds:
        coordinator = Coordinator(
            store,
            store_path,
            site.superlink,
            sync_wait_seconds=ROUND_WAIT_SECONDS,
            settings=None if site.private is None else site.private.settings,
        )
        record = coordinator.run(campaign, rounds.note)
    if record.state != "finished":
        check_faults(site)
        raise CampaignError(
            f"the campaign ended as {record.state}: {record.reason or 'no reason given'}; "
            f"logs are in {site.logs}"
        )


class RoundProgress:
    """Tells how many deltas of the running round are accepted, as its gateways say.

    The coordinator hears of them with a gateway's next message only, which is the round's last one.
    """

    def __init__(self, accepted: Callable[[int], int], rounds: int, tell: Watcher) -> None:
        """`accepted` gives the accepted deltas of a round; `rounds` train."""
        self._accepted = accepted
        self._rounds = rounds
        self._tell = tell
        self._lock = threading.Lock()
        self._running: tuple[int, int] | None = None  # round, wanted
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="round-progress", daemon=True)

    def note(self, event: ProgressEvent) -> None:
        """What the coordinator reports."""
        if event.kind == "run-failed":
            self._tell.say(f"Flower's run failed and is started again: {event.data['error']}")
        if event.round is None:
            return
        with self._lock:
            if event.kind == "round-started":
                self._running = event.round, int(event.data["wanted"])
                self._tell.phase(_round_label(event.round, self._rounds), 0, self._running[1])
            elif event.kind == "round-done" and self._running is not None:
                wanted = self._running[1]
                self._running = None
                self._tell.phase(_round_label(event.round, self._rounds), wanted, wanted)

    def _follow(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            running = self._running
            if running is None:
                continue
            accepted = self._accepted(running[0])
            with self._lock:
                # All of them are told of when the round is done.
                if running == self._running and accepted < running[1]:
                    label = _round_label(running[0], self._rounds)
                    self._tell.phase(label, accepted, running[1])

    def __enter__(self) -> Self:
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ask no more."""
        self._end.set()
        self._thread.join()


def _round_label(number: int, rounds: int) -> str:
    if number == 0:
        return "scoring the lab's weights"
    if number == rounds + 1:
        return "scoring and releasing the last weights"
    return f"round {number} of {rounds}"


def collect(
    store: Store,
    campaign: str,
    settings: DemoSettings,
    bundles: Mapping[str, Bundle],
    measured: Mapping[tuple[str, str], Measurement],
    *,
    seconds: float,
    phases: Mapping[str, float],
    bytes_up: Mapping[str, int],
    bytes_down: Mapping[str, int],
    fleet_memory_bytes: int,
) -> DemoResult:
    """Read a finished campaign from its store into plain data."""
    rows: dict[int, list[DeviceRound]] = {}
    facts = []
    deltas: dict[str, Any] = {"accepted": 0, "late": 0, "duplicate": 0}
    refused: dict[str, int] = {}
    declined: dict[str, int] = {}
    boards = {name: board_of(index) for index, name in enumerate(device_names(settings.devices))}
    for record in store.rounds(campaign):
        rows[record.number] = [
            device_round(record.number, report, boards[report["device"]])
            for report in store.reports(campaign, record.number)
        ]
        result = record.result
        for name in deltas:
            deltas[name] += int(result.get(name, 0))
        for total, key in ((refused, "refused"), (declined, "declined")):
            for reason, count in result.get(key, {}).items():
                total[reason] = total.get(reason, 0) + int(count)
        if 1 <= record.number <= settings.rounds:
            facts.append(
                RoundFacts(
                    round=record.number,
                    asked=int(result["asked"]),
                    accepted=int(result["accepted"]),
                    seconds=max((row.seconds for row in rows[record.number]), default=0.0),
                )
            )
    training = [row for number in range(1, settings.rounds + 1) for row in rows.get(number, [])]
    first = bundles[BOARDS[0]]
    privacy: tuple[str, ...] = ()
    if settings.private:
        privacy = privacy_lines(campaign_config(settings), store.rounds(campaign))
    return DemoResult(
        devices=settings.devices,
        rounds=settings.rounds,
        seed=settings.seed,
        seconds=seconds,
        parameters=first.manifest.model.parameters,
        compiler=first.manifest.compiler,
        plans=plan_facts(bundles, measured, training),
        first_scores=rows.get(0, []),
        device_rounds=training,
        final_scores=rows.get(settings.rounds + 1, []),
        round_facts=facts,
        deltas=Deltas(**deltas, refused=refused, declined=declined),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        phases=dict(phases),
        fleet_memory_bytes=fleet_memory_bytes,
        privacy=privacy,
    )


def privacy_lines(config: CampaignConfig, rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    """What was masked, and who could see what: lines for people."""
    sets = [one for record in rounds for one in record.result.get("sets", ())]
    counted = [one for one in sets if one["counted"]]
    smallest = min((int(one["devices"]) for one in counted), default=0)
    whys = sorted({str(one["why"]) for one in sets if one["why"]})
    lost = f"; others counted nothing: {', '.join(whys)}" if whys else ""
    return (
        f"Masked and signed: {len(counted)} of {len(sets)} sets were unmasked, the smallest of "
        f"{smallest} devices{lost}.",
        *(f"{one.who}: {one.sees}." for one in who_sees(config, Setting(True, ("",)))),
    )


def device_round(number: int, report: Mapping[str, Any], board: str) -> DeviceRound:
    """A gateway's report of one delta (docs/specification/gateway.md) as a row."""
    return DeviceRound(
        round=number,
        device=str(report["device"]),
        gateway=str(report["gateway"]),
        board=board,
        plan=str(report["plan"]),
        plan_reason=str(report["plan_reason"]),
        status=str(report["status"]),
        train_samples=int(report["train_samples"]),
        held_out=int(report["held_out"]),
        correct_before=int(report["correct_before"]),
        correct_after=int(report["correct_after"]),
        loss_before=float(report["loss_before"]),
        loss_after=float(report["loss_after"]),
        coded_bytes=int(report["coded_bytes"]),
        payload_bytes=int(report["payload_bytes"]),
        seconds=float(report["seconds"]),
    )


def plan_facts(
    bundles: Mapping[str, Bundle],
    measured: Mapping[tuple[str, str], Measurement],
    training: Sequence[DeviceRound],
) -> list[PlanFacts]:
    """Sizes and costs of every plan on every board, and how many devices trained it there."""
    facts = []
    for board, bundle in bundles.items():
        for plan in bundle.report.plans:
            used = {row.device for row in training if (row.board, row.plan) == (board, plan.id)}
            figures = measured[board, plan.id]
            facts.append(
                PlanFacts(
                    id=plan.id,
                    name=plan.name,
                    board=board,
                    devices=len(used),
                    sram_bytes=plan.sram_bytes.model_dump(),
                    sram_total_bytes=plan.sram_bytes.total,
                    sram_limit_bytes=plan.sram_limit_bytes,
                    delta_values=plan.delta_values,
                    instructions_per_step=figures.instructions.step,
                    instructions_forward=figures.instructions.forward,
                    stack_high_water_bytes=figures.stack_high_water_bytes,
                )
            )
    return facts
