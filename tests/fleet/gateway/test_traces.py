"""A gateway's process sends its spans of a round to a collector, over OTLP and HTTP."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

from fleet.errors import GatewayError
from fleet.gateway.config import GatewayTracing
from fleet.tracing import ENDPOINTS, place_of_round, traceparent
from tests.fleet.gateway.deltas import CAMPAIGN, GATEWAY
from tests.fleet.gateway.site import Site

ASKED = place_of_round(CAMPAIGN, 1).below("gateway", GATEWAY)


class Collector:
    """What arrived, by service."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, Sent]] = []
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mine.take(self.path, ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        assert path == "/v1/traces"
        for of in request.resource_spans:
            said = {one.key: one.value.string_value for one in of.resource.attributes}
            spans = [span for scope in of.scope_spans for span in scope.spans]
            self.arrived += [(said["service.name"], span) for span in spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@contextmanager
def traced(names: list[str], tracing: GatewayTracing | None) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        site = Site(Path(folder), names)
        site.settings = site.settings.model_copy(update={"tracing": tracing})
        try:
            site.start_gateway()
            yield site
        finally:
            site.close()


def a_round(site: Site) -> None:
    values = np.arange(1000, dtype=np.int32)
    for name in site.names:
        site.add(name, lambda task: (values, 20))
    place = {"campaign": CAMPAIGN, "round": 1, "traceparent": traceparent(ASKED)}
    site.client.request("trace", place)
    site.start(uplink_chunk_bytes=512)
    site.collect_closed()


@pytest.mark.parametrize("is_said_by", ["settings", "environment"])
def test_spans_of_a_round_arrive_below_the_one_that_the_coordinator_named(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, is_said_by: str
) -> None:
    tracing = GatewayTracing(endpoint=collector.address, devices=1)
    service = "tinyfleet-gateway"
    if is_said_by == "environment":
        tracing, service = None, "site-north"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", service)
    with traced(["cow-0", "cow-1"], tracing) as site:
        a_round(site)
        assert site.stop_gateway() == 0  # which sends what is there
    assert {name for name, _ in collector.arrived} == {service}
    spans = {span.name: span for _, span in collector.arrived}
    assert spans.keys() == {
        *("gateway.round", "publish", "deltas", "sum"),
        *("device", "task", "delta", "receipt"),
    }
    devices = [one for _, one in collector.arrived if one.name == "device"]
    assert len(devices) == (1 if tracing else 2)
    assert {span.trace_id for span in spans.values()} == {ASKED.trace.to_bytes(16, "big")}
    for name in ("gateway.round", "sum"):
        assert spans[name].parent_span_id == ASKED.span.to_bytes(8, "big")
    whole = spans["gateway.round"]
    for name in ("publish", "deltas", "device"):
        assert spans[name].parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= spans[name].start_time_unix_nano
        assert spans[name].end_time_unix_nano <= whole.end_time_unix_nano
    # Several chunks: it takes a while from the first of them to the last.
    assert spans["delta"].end_time_unix_nano > spans["delta"].start_time_unix_nano


def test_a_gateway_without_tracing_says_that_it_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    with traced([], None) as site:
        place = {"campaign": CAMPAIGN, "round": 1, "traceparent": traceparent(ASKED)}
        assert site.client.request("trace", place) == {"is_kept": False}
        with pytest.raises(GatewayError, match="traceparent must be a text"):
            site.client.request("trace", {**place, "traceparent": b"\x00" * 9})


def test_a_round_that_nobody_samples_gives_no_spans(collector: Collector) -> None:
    with traced(["cow-0"], GatewayTracing(endpoint=collector.address)) as site:
        unsampled = traceparent(ASKED).removesuffix("01") + "00"
        place = {"campaign": CAMPAIGN, "round": 1, "traceparent": unsampled}
        assert site.client.request("trace", place) == {"is_kept": True}
        values = np.arange(1000, dtype=np.int32)
        site.add("cow-0", lambda task: (values, 20))
        site.start()
        site.collect_closed()
        site.stop_gateway()
    assert collector.arrived == []
