"""Traces of rounds over OpenTelemetry, where settings or the environment ask for them.

A span is written when what it is about is over, with the times that were noted meanwhile: nothing
is carried through the code, and a process that is killed leaves none open. Its id follows from
names, so whoever goes on after a kill writes the span that the one before would have written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fleet.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL = "pip install 'tinyfleet[tracing]'"

log = logging.getLogger(__name__)


class TracingSettings(BaseModel):
    """Where spans go: the base address of a collector that speaks OTLP over HTTP. What isn't said
    is as the environment's `OTEL_…` say; secrets among it, since settings are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Annotated[str, Field(pattern=r"^(https?://[^\s@]+)?$")] = ""


class Place(NamedTuple):
    """Where a span stands: its trace, and its id in there."""

    trace: int
    span: int

    def below(self, *names: str) -> Place:
        """The place of what belongs to it, by names."""
        return Place(self.trace, _number(8, f"{self.trace:032x}", f"{self.span:016x}", *names))


class Span(NamedTuple):
    """What was done from `begin` to `end` (Unix time); `error` says why it failed, if it did."""

    name: str
    place: Place
    parent: Place | None
    begin: float
    end: float
    about: Mapping[str, str | int | float | bool]
    error: str = ""
    links: Sequence[Place] = ()


def place_of_round(campaign: str, number: int) -> Place:
    """The span of a round: the root of a trace of its own."""
    names = ("tinyfleet-round", campaign, str(number))
    return Place(_number(16, *names), _number(8, *names))


def _number(size: int, *names: str) -> int:
    """An id of so many bytes, which is never 0."""
    return int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:size], "big") or 1


class Traces:
    """Writes a process's spans; for any thread."""

    def __init__(self, service: str, exporter: SpanExporter, *, at_once: bool = False) -> None:
        """`service` is its name where `OTEL_SERVICE_NAME` gives none. Spans go in batches, from a
        thread of their own, or `at_once`."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        class GivenIds(IdGenerator):
            """The ids of the span that is being written."""

            place = Place(0, 0)

            def generate_trace_id(self) -> int:
                return self.place.trace

            def generate_span_id(self) -> int:
                return self.place.span

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
        self._ids = GivenIds()
        self._lock = threading.Lock()
        self._provider = TracerProvider(
            id_generator=self._ids, resource=Resource.create(named), shutdown_on_exit=False
        )
        processor = SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tinyfleet")

    def is_sampled(self, root: Place) -> bool:
        """Whether the environment's sampler wants the trace of this root."""
        from opentelemetry.context import Context
        from opentelemetry.sdk.trace.sampling import Decision

        said = self._provider.sampler.should_sample(Context(), root.trace, "round")
        return said.decision is Decision.RECORD_AND_SAMPLE

    def write(self, span: Span) -> None:
        """Hand a span over; what its sampler doesn't want is dropped."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, Status, StatusCode

        context = Context() if span.parent is None else _within(_context_of(span.parent))
        begin, end = (round(1e9 * at) for at in (span.begin, max(span.begin, span.end)))
        with self._lock:
            self._ids.place = span.place
            made = self._tracer.start_span(
                span.name,
                context,
                attributes={f"tinyfleet.{name}": value for name, value in span.about.items()},
                links=[Link(_context_of(one)) for one in span.links],
                start_time=begin,
            )
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(end)

    def close(self) -> None:
        """Send what is there."""
        self._provider.shutdown()


def traceparent(place: Place) -> str:
    """W3C's text for a sampled span, by which another process finds its parent."""
    return f"00-{place.trace:032x}-{place.span:016x}-01"


def read_traceparent(text: str) -> Place | None:
    """The span that a `traceparent` names; None where it isn't sampled, or none."""
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = TraceContextTextMapPropagator().extract({"traceparent": text})
    found = get_current_span(carried).get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    return Place(found.trace_id, found.span_id)


def _context_of(place: Place) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        place.trace, place.span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


def _within(parent: SpanContext) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parent), Context())


def open_traces(service: str, settings: TracingSettings | None) -> Traces | None:
    """Where spans of a service go; None where neither settings nor the environment say.

    ConfigurationError where the settings want them and the packages aren't there.
    """
    environment = os.environ
    is_off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environment.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
    )
    is_wanted = settings is not None or any(environment.get(name) for name in ENDPOINTS)
    if is_off or not is_wanted:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        if settings is not None:
            raise ConfigurationError(f"tracing: {error}; {_INSTALL}") from None
        log.warning("the environment wants traces, which aren't installed here: %s", _INSTALL)
        return None
    endpoint = settings.endpoint.rstrip("/") if settings else ""
    return Traces(service, OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces" if endpoint else None))
