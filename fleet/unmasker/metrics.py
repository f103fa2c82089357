"""Figures of an unmasker for Prometheus: docs/specification/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.protocol.mask_requests import REFUSALS
from fleet.unmasker.unmasker import LocalUnmasker

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class UnmaskerMetrics(Collector):
    """Tells how an unmasker stands; no label is a device's name."""

    def __init__(self, unmasker: LocalUnmasker) -> None:
        """Figures are looked at when somebody asks."""
        self._unmasker = unmasker
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def text(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: else all would be collected to find their names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See `text`."""
        store = self._unmasker.store
        sets = CounterMetricFamily("tinyfleet_unmasker_sets", "Sets whose masks were told.")
        sets.add_metric([], store.count_sets())
        yield sets
        devices = GaugeMetricFamily(
            "tinyfleet_unmasker_devices", "Devices that are enrolled and not revoked."
        )
        devices.add_metric([], store.count_devices())
        yield devices
        refused = CounterMetricFamily(
            "tinyfleet_unmasker_refused", "Requests that were refused.", labels=["kind"]
        )
        counts = store.refusals()
        for kind in REFUSALS:
            refused.add_metric([kind], counts.get(kind, 0))
        yield refused
