"""The gateway's connection to the broker: paho-mqtt, MQTT 5, persistent session.

Messages are handed on as they come and acknowledged only when the gateway says so, which
is after they are on disk. A connection that breaks is made again with jitter; unacknowledged
messages then come once more.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet.errors import BrokerError, BrokerRefusedError
from fleet.gateway.actions import Publish
from fleet.gateway.config import BrokerSettings

SESSION_EXPIRY_SECONDS = 24 * 3600
KEEP_ALIVE_SECONDS = 30
RECEIVE_MAXIMUM = 100
MIN_RECONNECT_SECONDS, MAX_RECONNECT_SECONDS = 0.25, 30.0
LOOP_SECONDS = 0.5
FLUSH_SECONDS = 2.0

# Refusals that trying again doesn't heal (MQTT 5, 3.2.2.2).
_FINAL_REFUSALS = {
    132: "it doesn't speak MQTT 5; use Mosquitto 2 or another broker that does",
    133: "the client identifier isn't allowed; check 'gateway' and 'user'",
    134: "wrong user name or password",
    135: "wrong user name or password",
    138: "the client is banned",
    140: "it wants another way of authentication",
}

log = logging.getLogger(__name__)


class Token(NamedTuple):
    """Names a received message for its acknowledgement.

    Packet identifiers start anew with every connection, so one from an earlier connection
    must not be acknowledged on a later one.
    """

    connection: int
    packet: int


class Listener(Protocol):
    """Who is told what happens; called from the connection's thread."""

    def on_connected(self) -> None:
        """The broker has let us in."""

    def on_message(self, topic: str, payload: bytes, token: Token | None) -> None:
        """A message came; ``token`` is None where it needs no acknowledgement."""

    def on_failed(self, error: BrokerError) -> None:
        """The connection has given up: the broker will not let us in, or there is a defect."""


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped


class BrokerConnection:
    """Keeps one client connected; a context manager that owns its thread."""

    def __init__(self, settings: BrokerSettings, client_id: str, listener: Listener) -> None:
        """Nothing is connected before ``start``."""
        self._settings = settings
        self._listener = listener
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connection = 0
        self._up = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, manual_ack=True
        )
        client = self._client
        client.username_pw_set(settings.user, settings.password())
        if settings.ca_file:
            client.tls_set(str(settings.ca_file))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        # With this callback set paho writes from its loop only, never from the calling thread,
        # where it could cut a packet of the loop's in two.
        client.on_socket_register_write = lambda *_: None
        client.max_queued_messages_set(0)
        self._connect_properties = _properties(PacketTypes.CONNECT)
        self._connect_properties.SessionExpiryInterval = SESSION_EXPIRY_SECONDS
        self._connect_properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def address(self) -> str:
        """Host and port of the broker."""
        return f"{self._settings.host}:{self._settings.port}"

    def start(self) -> None:
        """Connect, and stay connected until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is waiting, say goodbye, end the thread. The session stays at the broker."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * FLUSH_SECONDS + 5)

    def publish(self, message: Publish) -> None:
        """Publish with QoS 1; kept and sent later while there is no connection."""
        properties = _properties(PacketTypes.PUBLISH)
        if message.expiry_seconds is not None:
            properties.MessageExpiryInterval = message.expiry_seconds
        if message.response_topic is not None:
            properties.ResponseTopic = message.response_topic
        self._client.publish(
            message.topic, message.payload, qos=1, retain=message.retain, properties=properties
        )

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1; what is retained there comes now."""
        self._client.subscribe([(item, SubscribeOptions(qos=1)) for item in filters])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions."""
        self._client.unsubscribe(list(filters))

    def acknowledge(self, token: Token) -> None:
        """Tell the broker that a message has been dealt with."""
        with self._lock:
            if token.connection == self._connection and self._up:
                self._client.ack(token.packet, 1)

    # ---- the connection's thread -----------------------------------------------------

    def _run(self) -> None:
        try:
            self._stay_connected()
        except Exception as error:  # a gateway without its connection must not live on silently
            log.exception("the connection to broker %s failed", self.address)
            self._listener.on_failed(
                BrokerError(f"broker {self.address}: {error!r}; the log has the traceback")
            )

    def _stay_connected(self) -> None:
        delay = MIN_RECONNECT_SECONDS
        while not self._stopping.is_set():
            before = self._connection
            try:
                self._client.connect(
                    self._settings.host,
                    self._settings.port,
                    KEEP_ALIVE_SECONDS,
                    clean_start=False,
                    properties=self._connect_properties,
                )
                self._serve()
            except OSError as error:
                log.warning("broker %s can't be reached: %s; trying again", self.address, error)
            if self._connection != before:
                delay = MIN_RECONNECT_SECONDS
            # Jitter, so that many gateways don't come back in one instant.
            self._stopping.wait(delay * random.uniform(0.5, 1.5))
            delay = min(2 * delay, MAX_RECONNECT_SECONDS)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if self._client.loop(LOOP_SECONDS) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
        rounds = int(FLUSH_SECONDS / 0.05)
        while self._client.want_write() and rounds > 0:
            self._client.loop(0.05)
            rounds -= 1
        self._client.disconnect()
        self._client.loop(0.05)

    def _on_connect(
        self, client: paho.Client, user: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            remedy = _FINAL_REFUSALS.get(reason.value)
            if remedy is None:
                log.warning("broker %s is busy (%s); trying again", self.address, reason)
                return
            self._stopping.set()
            self._listener.on_failed(
                BrokerRefusedError(
                    f"broker {self.address} refuses user {self._settings.user} ({reason}): "
                    f"{remedy}; check 'user' and {self._settings.password_file} against the "
                    f"broker's password file"
                )
            )
            return
        with self._lock:
            self._connection += 1
            self._up = True
        session = "old" if flags.session_present else "new"
        log.info("connected to broker %s, %s session", self.address, session)
        self._listener.on_connected()

    def _on_disconnect(
        self, client: paho.Client, user: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        with self._lock:
            was_up, self._up = self._up, False
        if was_up and not self._stopping.is_set():
            log.warning("lost broker %s (%s)", self.address, reason)

    def _on_message(self, client: paho.Client, user: Any, message: paho.MQTTMessage) -> None:
        token = Token(self._connection, message.mid) if message.qos else None
        self._listener.on_message(message.topic, bytes(message.payload), token)

    def _on_publish(
        self, client: paho.Client, user: Any, packet: int, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            log.error(
                "broker %s refuses a publication (%s); does its ACL let user %s write tasks "
                "and blobs of this fleet?",
                self.address,
                reason,
                self._settings.user,
            )

    def _on_subscribe(
        self,
        client: paho.Client,
        user: Any,
        packet: int,
        reasons: list[ReasonCode],
        properties: Any,
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("broker %s refuses a subscription (%s)", self.address, reason)
