"""Figures of a service for Prometheus: docs/specification/metrics.md."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.campaign import RoundPlan
from fleet.campaign.config import CampaignConfig
from fleet.errors import FleetError
from fleet.gateway.disk_figures import disk_figures
from fleet.service.operations import Operations
from fleet.store import ENDED_STATES, CampaignRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("pending", "running", "waiting", "paused", "rolling-back", *ENDED_STATES)
JUDGED_SECONDS = 86_400.0
"""For how long it is told what gates of a campaign said that has ended."""

# Else each counter and histogram would have as many series once more, for when it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What is counted here, and what is read from the store when somebody asks."""

    def __init__(
        self,
        operations: Operations,
        *,
        is_leader: Callable[[], bool],
        is_ready: Callable[[], bool],
        deleted: Callable[[], Mapping[str, int]],
        folders: Mapping[str, Path],
    ) -> None:
        """A registry of its own: two services in one process don't mix.

        `is_leader`, `is_ready`: whether this service leads, and whether it can do its work;
        `deleted`: rows of each kind that it has deleted because they were old; `folders`: whose
        disks' room is told, by what they are for.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "tinyfleet_api_requests_total",
            "Answers of the API.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tinyfleet_api_request_duration_seconds",
            "Time until an answer.",
            ("path",),
            registry=self._registry,
        )
        self._registry.register(_Told(lambda: _service(is_leader, is_ready, deleted)))
        self._registry.register(_Told(lambda: disk_figures(folders)))
        self._registry.register(_Told(_Fleet(operations).figures))

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """All figures, and their content type."""
        return generate_latest(self._registry), CONTENT_TYPE


class _Told(Collector):
    """Figures that are looked up when somebody asks."""

    def __init__(self, figures: Callable[[], Iterable[Metric]]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        # Else they would be collected to find their names.
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._figures()


def _gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tinyfleet_{name}", what, labels=labels)


def _service(
    is_leader: Callable[[], bool],
    is_ready: Callable[[], bool],
    deleted: Callable[[], Mapping[str, int]],
) -> Iterator[Metric]:
    """Of this service, whatever the store says."""
    leads = _gauge("leader", "Whether this service leads.")
    leads.add_metric([], float(is_leader()))
    yield leads
    ready = _gauge("ready", "Whether nothing keeps this service from its work.")
    ready.add_metric([], float(is_ready()))
    yield ready
    rows = CounterMetricFamily(
        "tinyfleet_deleted", "Rows that were older than is kept.", labels=["kind"]
    )
    for kind, count in deleted().items():
        rows.add_metric([kind], count)
    yield rows


class _Fleet:
    """The fleet as the store has it."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        # A plan is large and never changes: of each round that runs it is read once.
        self._seconds: dict[tuple[str, int], float] = {}

    def figures(self) -> list[Metric]:
        """All, or none but whether the store answers."""
        up = _gauge("store_up", "Whether the database answers.")
        found: list[Metric] = [up]
        try:
            found += [
                *self._devices(),
                *self._campaigns(),
                self._judged(),
                *self._rounds(),
                self._webhooks(),
            ]
            up.add_metric([], 1.0)
        except FleetError:
            up.add_metric([], 0.0)
        return found

    def _devices(self) -> Iterator[Metric]:
        ops = self._operations
        devices = _gauge("devices", "Devices that aren't retired.", "site", "online")
        for (site, online), count in ops.registry.presence().items():
            devices.add_metric([site, online], count)
        yield devices
        age = _gauge(
            "gateway_age_seconds",
            "Since a gateway was heard of; endless where it never was.",
            *("gateway", "site"),
        )
        problem = _gauge(
            "gateway_problem", "Whether what it last said made no sense.", "gateway", "site"
        )
        now = ops.store.clock.wall()
        for one in ops.gateways.list():
            if one.retired:
                continue
            seconds = float("inf") if one.last_seen is None else max(0.0, now - one.last_seen)
            age.add_metric([one.gateway, one.site], seconds)
            problem.add_metric([one.gateway, one.site], float(bool(one.problem)))
        yield from (age, problem)

    def _campaigns(self) -> Iterator[Metric]:
        all_of_them = self._operations.store.campaigns()
        tally = Tally(dict.fromkeys(STATES, 0))
        tally.update(one.state for one in all_of_them)
        states = _gauge("campaigns", "Campaigns by state.", "state")
        for state, count in tally.items():
            states.add_metric([state], count)
        yield states
        waiting = _gauge(
            "campaign_waiting", "1 while somebody has to decide.", "campaign", "name", "what"
        )
        for record in all_of_them:
            if record.waiting:
                waiting.add_metric([*_names(record), record.waiting], 1.0)
        yield waiting

    def _judged(self) -> Metric:
        ops = self._operations
        now = ops.store.clock.wall()
        age = _gauge(
            "stage_judged_age_seconds",
            "Since a stage's gates spoke.",
            *("campaign", "name", "stage", "outcome"),
        )
        for one in ops.stages.judged_since(now - JUDGED_SECONDS):
            config = CampaignConfig.parse(one.config)
            labels = [one.campaign, config.name, config.stages[one.stage].name, one.outcome]
            age.add_metric(labels, max(0.0, now - one.judged))
        return age

    def _rounds(self) -> list[Metric]:
        """Of campaigns that are under way: their newest round, and the oldest that runs."""
        store = self._operations.store
        labels = ("campaign", "name")
        number = _gauge("round", "Number of the newest round.", *labels)
        asked = _gauge("round_asked", "Devices that it asks.", *labels)
        wanted = _gauge("round_wanted", "Deltas that it wants.", *labels)
        accepted = _gauge("round_accepted", "Deltas that it has.", *labels)
        age = _gauge("round_age_seconds", "Of the oldest round that runs.", *labels)
        deadline = _gauge("round_deadline_seconds", "From its begin to its deadline.", *labels)
        grace = _gauge(
            "round_grace_seconds", "For which gateways are waited for after that.", *labels
        )
        seconds: dict[tuple[str, int], float] = {}
        for record in store.campaigns_under_way():
            rounds = store.round_summaries(record.id)
            if not rounds:
                continue
            names, newest = _names(record), rounds[-1]
            number.add_metric(names, newest.number)
            asked.add_metric(names, newest.asked)
            wanted.add_metric(names, newest.wanted)
            accepted.add_metric(names, newest.accepted)
            oldest = next((one.number for one in rounds if one.state == "running"), None)
            if oldest is None:
                continue
            config = CampaignConfig.parse(record.config)
            key = (record.id, oldest)
            seconds[key] = self._seconds.get(key) or self._deadline(record, oldest, config)
            began, _ = store.round_times(*key)
            age.add_metric(names, max(0.0, store.clock.wall() - began))
            deadline.add_metric(names, seconds[key])
            grace.add_metric(names, config.gateway_grace_seconds)
        self._seconds = seconds
        return [number, asked, wanted, accepted, age, deadline, grace]

    def _deadline(self, record: CampaignRecord, number: int, config: CampaignConfig) -> float:
        plan = self._operations.store.round(record.id, number).plan
        return RoundPlan.from_json(plan).seconds(config.deadline_seconds)

    def _webhooks(self) -> Metric:
        failures = _gauge("webhook_failures", "Failed attempts since the last success.", "webhook")
        for one in self._operations.webhooks.list():
            failures.add_metric([one.webhook], one.failures)
        return failures


def _names(record: CampaignRecord) -> list[str]:
    return [record.id, CampaignConfig.parse(record.config).name]
