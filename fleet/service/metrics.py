"""Figures of a service for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.campaign.config import CampaignConfig
from fleet.errors import FleetError
from fleet.service.operations import Operations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted here, and what is read from the store when somebody asks."""

    def __init__(self, operations: Operations) -> None:
        """A registry of its own: two services in one process don't mix."""
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

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """All figures, and their content type."""
        return generate_latest(self._registry), CONTENT_TYPE


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
