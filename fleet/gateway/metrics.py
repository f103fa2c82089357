"""Figures of a gateway for Prometheus (docs/specification/metrics.md), where its settings ask.

What happens is counted by the logic's thread, the rest is looked at when somebody asks. No label
is a device's name.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.clock import Clock
from fleet.errors import ConfigurationError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, Filter
from fleet.gateway.config import GatewaySettings, MetricsSettings
from fleet.gateway.core import Core
from fleet.gateway.disk_figures import disk_figures
from fleet.gateway.link import Link, Message
from fleet.gateway.refusals import KINDS

_BROKER_TOPICS = "$SYS/broker/"

# Mosquitto's topic, whether it only grows, and what it is about. It tells those that have changed,
# every 10 s.
_BROKER = {
    "clients/connected": ("clients", False, "Clients that are connected."),
    "store/messages/count": ("stored_messages", False, "Messages held, retained ones included."),
    "store/messages/bytes": ("stored_bytes", False, "Their payloads."),
    "retained messages/count": ("retained_messages", False, "Messages that are retained."),
    "publish/messages/dropped": ("dropped_messages", True, "Dropped, as a queue was full."),
    "heap/current": ("heap_bytes", False, "Memory in use."),
}

log = logging.getLogger(__name__)


class GatewayMetrics(Collector):
    """Counts what a gateway does, and tells how it stands."""

    def __init__(self, settings: GatewaySettings, clock: Clock) -> None:
        """Nothing is told before `serve`."""
        self._settings = settings
        self._clock = clock
        self._core: Core | None = None
        self._link: Link | None = None
        self._batches: Callable[[], int] = lambda: 0
        self._accepted = 0
        self._delta_bytes = 0
        self._tasks = 0
        self._refused = Counter(dict.fromkeys(KINDS, 0))
        self._connections = 0
        self._broker: dict[str, float] = {}
        self._asked = clock.monotonic()
        self._server: tuple[WSGIServer, Thread] | None = None

    # ---- what happens ----------------------------------------------------------------

    def watch(self, action: Action) -> None:
        """An action is done; see `Core`."""
        match action:
            case act.Accept():
                self._accepted += 1
                self._delta_bytes += action.report.payload_bytes
            case act.Count():
                self._refused[action.kind] += 1
            case act.PublishTask():
                self._tasks += 1

    def asked(self) -> None:
        """Somebody asks the gateway something on its socket."""
        self._asked = self._clock.monotonic()

    def connected(self, link: Link) -> None:
        """The broker has let us in; it may be another one, so what was known of it is forgotten."""
        self._connections += 1
        self._broker = {}
        link.subscribe([Filter(_BROKER_TOPICS + topic) for topic in _BROKER])

    def without_brokers_own(self, messages: Sequence[Message]) -> list[Message]:
        """The messages that aren't the broker's about itself; those are noted."""
        others = []
        for one in messages:
            if one.topic.startswith("$"):
                self._note(one)
            else:
                others.append(one)
        return others

    def _note(self, message: Message) -> None:
        name = message.topic.removeprefix(_BROKER_TOPICS)
        with suppress(ValueError):
            value = float(message.payload)
            if name in _BROKER and math.isfinite(value):
                self._broker = {**self._broker, name: value}

    # ---- what is told ----------------------------------------------------------------

    def serve(self, core: Core, link: Link, batches: Callable[[], int]) -> None:
        """Answer until `stop`; `batches`: how many wait for the logic.

        ConfigurationError where it can't listen.
        """
        self._core, self._link, self._batches = core, link, batches
        where = self._settings.metrics
        assert isinstance(where, MetricsSettings)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        try:
            server, thread = start_http_server(where.port, where.host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"metrics: can't listen on {where.host}:{where.port} ({error}); "
                "choose another 'port' below [metrics]"
            ) from None
        self._server = server, thread
        log.info("metrics are at http://%s:%d/metrics", where.host, where.port)

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def describe(self) -> Iterable[Metric]:
        """Nothing: else all would be collected to find their names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All figures as they stand; any thread."""
        assert self._core is not None
        assert self._link is not None
        waiting = self._link.waiting
        store = self._settings.store
        of_store = (store, store.with_name(store.name + "-wal"))
        rounds = sum(one.open for one in list(self._core.logic.rounds.values()))
        yield self._gauge("gateway_rounds", "Rounds that run.", rounds)
        yield self._counter("gateway_tasks", "Tasks published.", self._tasks)
        yield self._counter("gateway_deltas_accepted", "Deltas in a sum.", self._accepted)
        yield self._counter("gateway_delta_bytes", "Payloads of these.", self._delta_bytes)
        yield self._deltas_refused()
        yield self._gauge(
            "gateway_waiting_batches", "Of messages, not dealt with yet.", self._batches()
        )
        yield self._gauge(
            "gateway_unsent_publications",
            "Publications that wait for the broker.",
            self._core.unsent + (waiting or 0),
        )
        yield self._gauge(
            "gateway_store_bytes",
            "The round store's file and journal.",
            sum(one.stat().st_size for one in of_store if one.exists()),
        )
        yield self._gauge(
            "gateway_asked_age_seconds",
            "Since the coordinator asked for something, or since the start.",
            self._clock.monotonic() - self._asked,
        )
        yield self._gauge(
            "gateway_broker_connected", "Whether the broker has let us in.", waiting is not None
        )
        yield self._counter(
            "gateway_broker_connections", "Connections that there were.", self._connections
        )
        if waiting is not None:
            yield from self._of_broker()
        yield from disk_figures({"store": store.parent})

    def _deltas_refused(self) -> Metric:
        refused = CounterMetricFamily(
            "tinyfleet_gateway_deltas_refused",
            "Deltas that weren't counted in.",
            labels=["gateway", "reason"],
        )
        for kind in KINDS:
            refused.add_metric([self._settings.gateway, kind], self._refused[kind])
        return refused

    def _of_broker(self) -> Iterable[Metric]:
        said = self._broker
        for topic, (name, grows, what) in _BROKER.items():
            if topic in said:
                make = self._counter if grows else self._gauge
                yield make(f"broker_{name}", what, said[topic])

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        one = GaugeMetricFamily(f"tinyfleet_{name}", what, labels=["gateway"])
        one.add_metric([self._settings.gateway], float(value))
        return one

    def _counter(self, name: str, what: str, value: float) -> Metric:
        one = CounterMetricFamily(f"tinyfleet_{name}", what, labels=["gateway"])
        one.add_metric([self._settings.gateway], value)
        return one
