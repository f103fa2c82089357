"""The MQTT client over a link that breaks at arbitrary bytes, between it and a real broker."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.device_runtime.link.conftest import Client
from tests.device_runtime.link.test_mqtt_with_mosquitto import (
    PASSWORD,
    Broker,
    Gateway,
    broker,
    gateway,
    run_until,
)
from tests.patience import PATIENCE_SECONDS, wait_until

__all__ = ["broker", "gateway"]  # fixtures


class BreakingLink:
    """Forwards TCP to the broker and cuts each connection after a random number of bytes."""

    def __init__(self, port: int, seed: int) -> None:
        self.draw = random.Random(seed)
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0.1)
        self.port: int = self.listener.getsockname()[1]
        self.breaks = True
        self.cuts = 0
        self.running = True
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while self.running:
            try:
                near, _ = self.listener.accept()
            except TimeoutError:
                continue
            with near, socket.create_connection(("127.0.0.1", self.target)) as far:
                self.forward(near, far)

    def forward(self, near: socket.socket, far: socket.socket) -> None:
        left = self.draw.choice([60, 150, 400, 1500])
        left = self.draw.randrange(left) if self.breaks else 10**9
        while self.running:
            for source in select.select([near, far], [], [], 0.05)[0]:
                data = source.recv(min(left, self.draw.randint(1, 200)))
                if not data:
                    return
                (far if source is near else near).sendall(data)
                left -= len(data)
                if left == 0:
                    self.cuts += 1
                    return

    def close(self) -> None:
        self.running = False
        self.thread.join()
        self.listener.close()


@pytest.fixture(params=[1, 2, 3])
def link(request: pytest.FixtureRequest, broker: Broker) -> Iterator[BreakingLink]:
    breaking = BreakingLink(broker.port, request.param)
    yield breaking
    breaking.close()


def test_every_message_arrives_both_ways_although_the_link_keeps_breaking(
    make_client: Callable[..., Client], gateway: Gateway, link: BreakingLink
) -> None:
    gateway.subscribe("up")
    options = {"tcp": link.port, "backoff": 5, "backoff-limit": 30, "dial": 100}
    client = make_client(id="device", user="device", password=PASSWORD, **options)
    link.breaks = False
    client("start")
    run_until(client, "connected")
    link.breaks = True
    client("stop 0")
    run_until(client, "stopped")

    for number in range(20):
        gateway.publish(f"down/{number}", bytes([number]) * 100, retain=True)
    client("start")
    received: list[int] = []
    lost = acknowledged = 0
    end = time.monotonic() + PATIENCE_SECONDS
    while (acknowledged < 20 or len(set(received)) < 20) and time.monotonic() < end:
        if acknowledged < 20:
            client(f"publish up 0 0 {bytes([acknowledged] * 100).hex()}")  # or not: one at a time
        for line in client("run 50"):
            if line.startswith("message"):
                received.append(int(line[-2:], 16))
                assert line.endswith(f"{received[-1]:02x}" * 100)
            elif line.startswith("connected"):
                client("subscribe down/+")  # the broker has forgotten it
            elif line.startswith("lost"):
                assert "protocol-error" not in line
                lost += 1
            elif line.startswith("published"):
                assert line.endswith("reason=00")
                acknowledged += 1
            if lost >= 30:
                link.breaks = False  # enough; the rest may finish in peace
    assert lost >= 3
    assert acknowledged == 20
    assert sorted(set(received)) == list(range(20))
    wait_until(lambda: {message.payload[0] for message in gateway.messages} == set(range(20)))
    order = [message.payload[0] for message in gateway.messages]
    assert order == sorted(order), "repeated, but never out of order"
    assert all(message.payload == bytes([message.payload[0]]) * 100 for message in gateway.messages)
