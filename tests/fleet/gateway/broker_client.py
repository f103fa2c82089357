"""A client of a real Mosquitto, and what it may do there."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleet.gateway.broker import Broker
from tests.patience import PATIENCE_SECONDS, wait_until


class Client:
    """Logs in when it is made. One that loses its connection tries again, until it is refused."""

    def __init__(
        self,
        broker: Broker,
        user: str,
        password: str,
        client_id: str = "",
        authority: Path | None = None,
    ) -> None:
        self.refusal: Any = None
        self.answered = threading.Event()
        self.ended = threading.Event()
        self.messages: queue.Queue[str] = queue.Queue()
        self.results: dict[int, Any] = {}
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id or user, protocol=paho.MQTTv5
        )
        self.client.username_pw_set(user, password)
        self.client.on_connect = self._on_connect
        self.client.on_message = lambda c, u, m: self.messages.put(m.topic)
        self.client.on_publish = lambda c, u, mid, reason, p: self.results.update({mid: reason})
        self.client.on_disconnect = lambda *_: self.ended.set()
        port = broker.port
        if authority:
            assert broker.config.tls
            port = broker.config.tls.port
            self.client.tls_set(str(authority))
        self.client.connect(broker.host, port)
        self.client.loop_start()
        assert self.answered.wait(PATIENCE_SECONDS)

    def _on_connect(self, client: Any, user: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.refusal = reason if reason.is_failure else None
        self.answered.set()
        if self.refusal:
            client.disconnect()

    def subscribe(self, *filters: str) -> None:
        """Returns when the broker has taken them."""
        taken = threading.Event()
        self.client.on_subscribe = lambda *_: taken.set()
        self.client.subscribe([(one, 1) for one in filters])
        assert taken.wait(PATIENCE_SECONDS)

    def next(self) -> str:
        """Topic of the next message."""
        return self.messages.get(timeout=PATIENCE_SECONDS)

    def may_write(self, topic: str) -> bool:
        mid = self.client.publish(topic, b"x", qos=1).mid
        wait_until(lambda: mid in self.results)
        return not self.results[mid].is_failure

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
