"""A link over paho-mqtt: MQTT 5, a clean session and a client of its own for every connection.

A connection that breaks is made again with jitter. Nothing is carried over from one to the next:
the round logic looks at what the broker has, and devices send again what there is no receipt for.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet.errors import BrokerError, BrokerRefusedError
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.config import BrokerSettings
from fleet.gateway.link import Listener

KEEP_ALIVE_SECONDS = 30
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


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped


class PahoLink:
    """See :class:`fleet.gateway.link.Link`; owns a thread."""

    def __init__(self, settings: BrokerSettings, listener: Listener) -> None:
        """Nothing is connected before ``start``; ConfigurationError without a password."""
        self._settings = settings
        self._password = settings.password()
        self._listener = listener
        self._stopping = threading.Event()
        self._client: paho.Client | None = None  # where there is a connection
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def address(self) -> str:
        """Host and port of the broker."""
        return f"{self._settings.host}:{self._settings.port}"

    def start(self) -> None:
        """See `Link`."""
        self._thread.start()

    def stop(self) -> None:
        """See `Link`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * FLUSH_SECONDS + 5)

    def publish(self, message: Publish) -> None:
        """See `Link`."""
        client = self._client
        if client is None:
            return
        properties = None
        if message.expiry_seconds is not None or message.response_topic is not None:
            properties = _properties(PacketTypes.PUBLISH)
            if message.expiry_seconds is not None:
                properties.MessageExpiryInterval = message.expiry_seconds
            if message.response_topic is not None:
                properties.ResponseTopic = message.response_topic
        client.publish(
            message.topic, message.payload, message.qos, message.retain, properties=properties
        )

    def subscribe(self, filters: Sequence[Filter]) -> None:
        """See `Link`."""
        client = self._client
        if client is not None:
            client.subscribe(
                [
                    (
                        one.topic,
                        SubscribeOptions(
                            noLocal=one.no_local, retainAsPublished=one.retain_as_published
                        ),
                    )
                    for one in filters
                ]
            )

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """See `Link`."""
        client = self._client
        if client is not None:
            client.unsubscribe(list(topics))

    # ---- the link's thread -----------------------------------------------------------

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
            client = self._new_client()
            was_up = False
            try:
                client.connect(
                    self._settings.host, self._settings.port, KEEP_ALIVE_SECONDS, clean_start=True
                )
                was_up = self._serve(client)
            except OSError as error:
                log.warning("broker %s can't be reached: %s; trying again", self.address, error)
            finally:
                self._client = None
            if was_up:
                delay = MIN_RECONNECT_SECONDS
            # Jitter, so that many gateways don't come back in one instant.
            self._stopping.wait(delay * random.uniform(0.5, 1.5))
            delay = min(2 * delay, MAX_RECONNECT_SECONDS)

    def _new_client(self) -> paho.Client:
        settings = self._settings
        client = paho.Client(CallbackAPIVersion.VERSION2, settings.user, protocol=paho.MQTTv5)
        client.username_pw_set(settings.user, self._password)
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
        return client

    def _serve(self, client: paho.Client) -> bool:
        """Until the connection ends; returns whether there ever was one."""
        was_up = False
        while not self._stopping.is_set():
            alive = client.loop(LOOP_SECONDS) == MQTTErrorCode.MQTT_ERR_SUCCESS
            was_up = was_up or self._client is client
            if not alive:
                return was_up
        rounds = int(FLUSH_SECONDS / 0.05)
        while client.want_write() and rounds > 0:
            client.loop(0.05)
            rounds -= 1
        client.disconnect()
        client.loop(0.05)
        return was_up

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
        self._client = client
        log.info("connected to broker %s", self.address)
        self._listener.on_connected()

    def _on_disconnect(
        self, client: paho.Client, user: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        was_up, self._client = self._client is client, None
        if was_up and not self._stopping.is_set():
            log.warning("lost broker %s (%s)", self.address, reason)

    def _on_message(self, client: paho.Client, user: Any, message: paho.MQTTMessage) -> None:
        self._listener.on_message(message.topic, bytes(message.payload), message.retain)

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
