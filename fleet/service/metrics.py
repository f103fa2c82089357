"""Figures of a service for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.campaign.config import CampaignConfig
from fleet.errors import FleetError
from fleet.service.operations import Operations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted here, and what is read from the store when somebody asks."""

    def __init__(
        self, operations: Operations, deleted: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """A registry of its own: two services in one process don't mix.

        `deleted`: rows of each kind that this service has deleted because they were old.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tinyfleet_api_requests_total",
            "Answers of the API.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tinyfleet_api_seconds",
            "Time until an answer.",
            ("path",),
            registry=self._registry,
        )
        self._registry.register(_Fleet(operations))
        self._registry.register(_Deleted(deleted))

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """All figures, and their content type."""
        return generate_latest(self._registry), CONTENT_TYPE


class _Deleted(Collector):
    """What was old, and is gone."""

    def __init__(self, deleted: Callable[[], Mapping[str, int]]) -> None:
        self._deleted = deleted

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        rows = CounterMetricFamily(
            "tinyfleet_deleted", "Rows that were older than is kept.", labels=["kind"]
        )
        for kind, count in self._deleted().items():
            rows.add_metric([kind], count)
        yield rows


class _Fleet(Collector):
    """The fleet as the store has it."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def describe(self) -> Iterable[Metric]:
        # Else they would be collected to find their names.
        return ()

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("tinyfleet_store_up", "Whether the database answers.")
        try:
            yield from self._figures()
            up.add_metric([], 1.0)
        except FleetError:
            up.add_metric([], 0.0)
        yield up

    def _figures(self) -> list[Metric]:
        ops = self._operations
        devices = GaugeMetricFamily(
            "tinyfleet_devices", "Devices that aren't retired.", labels=["site", "online"]
        )
        for (site, online), count in ops.registry.presence().items():
            devices.add_metric([site, online], count)
        gateways = GaugeMetricFamily(
            "tinyfleet_gateway_age_seconds",
            "Since a gateway was heard of; endless where it never was.",
            labels=["gateway", "site"],
        )
        now = ops.store.clock.wall()
        for one in ops.gateways.list():
            if one.retired:
                continue
            age = float("inf") if one.last_seen is None else max(0.0, now - one.last_seen)
            gateways.add_metric([one.gateway, one.site], age)
        states = GaugeMetricFamily("tinyfleet_campaigns", "Campaigns by state.", labels=["state"])
        for state, count in Tally(one.state for one in ops.store.campaigns()).items():
            states.add_metric([state], count)
        accepted = GaugeMetricFamily(
            "tinyfleet_round_accepted", "Deltas of the newest round.", labels=["campaign", "name"]
        )
        wanted = GaugeMetricFamily(
            "tinyfleet_round_wanted", "Deltas that it wants.", labels=["campaign", "name"]
        )
        number = GaugeMetricFamily(
            "tinyfleet_round", "Number of the newest round.", labels=["campaign", "name"]
        )
        for record in ops.store.campaigns_under_way():
            rounds = ops.store.round_summaries(record.id)
            if rounds:
                name = CampaignConfig.parse(record.config).name
                accepted.add_metric([record.id, name], rounds[-1].accepted)
                wanted.add_metric([record.id, name], rounds[-1].wanted)
                number.add_metric([record.id, name], rounds[-1].number)
        return [devices, gateways, states, accepted, wanted, number]
