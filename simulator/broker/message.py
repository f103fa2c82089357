"""A publication as the broker keeps it, and what its clients are refused with."""

from __future__ import annotations

from typing import NamedTuple


class Properties(NamedTuple):
    """What is passed on as it came (MQTT 5, 3.3.2.3)."""

    payload_format_indicator: int = 0
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


NO_PROPERTIES = Properties()


class Message:
    """What all copies of one publication share; never changed."""

    __slots__ = ("expires", "payload", "properties", "publisher", "qos", "retain", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        publisher: str,
        expires: float | None = None,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        """``publisher`` is a client identifier; ``expires`` is a time of the broker's clock."""
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.publisher = publisher
        self.expires = expires
        self.properties = properties


class Will(NamedTuple):
    """What is published for a client that goes without DISCONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    delay_seconds: int
    expiry_seconds: int | None
    properties: Properties
