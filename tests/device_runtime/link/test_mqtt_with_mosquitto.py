"""The MQTT client and a real broker: Mosquitto on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.ports import free_port
from tests.device_runtime.link.conftest import Client
from tests.device_runtime.link.test_streamed_publications import drawn
from tests.patience import PATIENCE_SECONDS, wait_until

PASSWORD = "correct horse"
SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


def tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + SYSTEM_FOLDERS)
    if path is None:
        pytest.skip(f"{name} is not installed; install the package mosquitto to run this test")
    return path


class Broker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        passwords = folder / "passwords"
        for user in ("device", "gateway"):
            create = ["-c"] if user == "device" else []
            command = [tool("mosquitto_passwd"), "-b", *create, str(passwords), user, PASSWORD]
            subprocess.run(command, check=True, capture_output=True)
        passwords.chmod(0o600)
        account = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True)
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {folder}/\nautosave_on_changes true\n"
            f"autosave_interval 1\nuser {account.stdout.strip()}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [tool("mosquitto"), "-v", "-c", str(self.folder / "mosquitto.conf")],
            stdout=log,
            stderr=log,
        )
        wait_until(self._listens, self.log)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    yield running
    running.kill()


class Gateway:
    """The other side: paho, as the gateway uses it."""

    def __init__(self, broker: Broker) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, "gateway", protocol=paho.MQTTv5)
        self.client.username_pw_set("gateway", PASSWORD)
        self.client.on_message = lambda client, user, message: self.messages.append(message)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def subscribe(self, topic: str) -> None:
        done: list[int] = []
        self.client.on_subscribe = lambda *arguments: done.append(1)
        self.client.subscribe(topic, qos=1)
        wait_until(lambda: bool(done))

    def publish(
        self, topic: str, payload: bytes, retain: bool = False, **properties: object
    ) -> None:
        carried = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(carried, name, value)
        self.client.publish(topic, payload, 1, retain, carried).wait_for_publish(PATIENCE_SECONDS)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def gateway(broker: Broker) -> Iterator[Gateway]:
    other = Gateway(broker)
    yield other
    other.close()


def run_until(client: Client, start: str) -> str:
    """Runs the client to its next event that starts so; others in between are passed over."""
    end = time.monotonic() + PATIENCE_SECONDS
    seen: list[str] = []
    while time.monotonic() < end:
        # The process stops at the first event, but one poll may bring two.
        seen += (lines := client.held_back + client("run 500"))
        client.held_back = []
        for index, line in enumerate(lines):
            if line.startswith(start):
                client.held_back = lines[index + 1 :]
                return line
    pytest.fail(f"no event {start!r}; saw {seen}")


@pytest.fixture
def connect(make_client: Callable[..., Client], broker: Broker) -> Callable[..., Client]:
    def make(**options: object) -> Client:
        given = {"tcp": broker.port, "id": "device", "user": "device", "password": PASSWORD}
        client = make_client(**{**given, "backoff": 100, "dial": 100, **options})
        client("start")
        return client

    return make


def test_wrong_password_is_told_as_bad_credentials_or_not_authorized(
    connect: Callable[..., Client],
) -> None:
    client = connect(password="wrong")
    # 0x86 bad credentials, or 0x87 from Mosquitto before 2.1
    assert run_until(client, "lost") in {
        "lost cause=refused reason=86",
        "lost cause=refused reason=87",
    }


def test_publication_reaches_the_gateway_whole_and_once(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    gateway.subscribe("up/#")
    client = connect()
    assert run_until(client, "connected") == "connected"
    payload = bytes(index & 0xFF for index in range(600))
    client(f"publish up/one 0 77 {payload.hex()}")
    assert run_until(client, "published") == "published id=1 reason=00"
    wait_until(lambda: bool(gateway.messages))
    (message,) = gateway.messages
    assert (message.topic, message.payload, message.qos) == ("up/one", payload, 1)
    assert message.properties is not None
    assert message.properties.MessageExpiryInterval in (76, 77)


def test_publication_that_nobody_reads_is_acknowledged_with_that_reason(
    connect: Callable[..., Client],
) -> None:
    client = connect()
    run_until(client, "connected")
    client("publish nobody 0 0 01")
    assert run_until(client, "published") == "published id=1 reason=10"


def test_retained_message_comes_after_subscribing_with_its_properties(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    gateway.publish(
        "task",
        b"\1\2\3",
        retain=True,
        MessageExpiryInterval=2000,
        ResponseTopic="gw/delta",
        CorrelationData=b"\xca\xfe",
        UserProperty=("site", "north"),
        ContentType="application/cbor",
    )
    client = connect()
    run_until(client, "connected")
    client("subscribe task")
    text = run_until(client, "message")
    assert "retained=1" in text
    assert "response=gw/delta correlation=cafe payload=010203" in text
    expiry = int(text.split("expiry=")[1].split()[0])
    assert 1000 <= expiry <= 2000  # less what it has waited at the broker


def test_broker_keeps_to_receive_maximum_until_messages_are_taken(
    connect: Callable[..., Client], gateway: Gateway, broker: Broker
) -> None:
    client = connect()
    run_until(client, "connected")
    client("subscribe blob/+")
    run_until(client, "subscribed")
    client("answer 1")  # not yet, says the callback
    for index in range(10):
        gateway.publish(f"blob/{index}", bytes(512))
    run_until(client, "message topic=blob/0")
    wait_until(lambda: broker.log().count("Sending PUBLISH to device") >= 2, broker.log)
    time.sleep(0.3)
    assert broker.log().count("Sending PUBLISH to device") == 2
    client("answer 0")
    topics = []
    end = time.monotonic() + PATIENCE_SECONDS
    while len(topics) < 10 and time.monotonic() < end:
        topics += [line.split()[1] for line in client("run 200") if line.startswith("message")]
    assert topics == [f"topic=blob/{index}" for index in range(10)]


def test_the_broker_keeps_nothing_of_a_client_but_what_is_retained(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    client = connect()
    run_until(client, "connected")
    client("subscribe to/+")
    run_until(client, "subscribed")
    client("stop 0")
    run_until(client, "stopped")
    gateway.publish("to/receipt", b"\x11")
    gateway.publish("to/task", b"\x22", retain=True)
    client("start")
    run_until(client, "connected")
    assert client("run 300") == [], "no subscription is left"
    client("subscribe to/+")
    assert run_until(client, "message").endswith("payload=22")
    assert client("run 300") == []


def test_a_streamed_payload_of_16_kilobytes_reaches_the_gateway_whole(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    gateway.subscribe("up/#")
    client = connect()
    run_until(client, "connected")
    client("stream up/delta 0102 16384")
    assert run_until(client, "published") == "published id=1 reason=00"
    wait_until(lambda: bool(gateway.messages))
    assert gateway.messages[0].payload == b"\1\2" + drawn(16_384)


def test_will_is_published_and_kept_when_the_device_dies(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    client = connect(will="status")
    run_until(client, "connected")
    gateway.subscribe("status")
    client.process.stdin.close()  # type: ignore[union-attr]
    client.process.wait()
    wait_until(lambda: len(gateway.messages) == 1)
    gateway.subscribe("status")  # once more: now the broker sends what it has kept
    wait_until(lambda: len(gateway.messages) == 2)
    assert [message.payload for message in gateway.messages] == [b"gone"] * 2
    assert [message.retain for message in gateway.messages] == [False, True]


def test_orderly_stop_publishes_no_will_unless_asked(
    connect: Callable[..., Client], gateway: Gateway
) -> None:
    gateway.subscribe("status/+")
    for number, with_will in enumerate((0, 1)):
        client = connect(will=f"status/{number}", id=f"device-{number}")
        run_until(client, "connected")
        client(f"stop {with_will}")
        run_until(client, "stopped")
    wait_until(lambda: bool(gateway.messages))
    assert [message.topic for message in gateway.messages] == ["status/1"]


@pytest.mark.slow
def test_pings_keep_a_quiet_connection_open(connect: Callable[..., Client]) -> None:
    client = connect(keepalive=4)  # the broker hangs up after six seconds, a ping late or not
    run_until(client, "connected")
    assert client("run 9000") == []
    assert client.state() == "online"


def test_second_client_with_the_same_name_takes_the_session_over(
    connect: Callable[..., Client],
) -> None:
    first = connect()
    run_until(first, "connected")
    second = connect()
    run_until(second, "connected")
    # Mosquitto 2.0.11 only hangs up; later ones say 0x8E (session taken over) first.
    assert run_until(first, "lost") in {
        "lost cause=stream-closed reason=00",
        "lost cause=disconnected reason=8e",
    }


def test_killed_broker_comes_back_and_nothing_acknowledged_or_pending_is_lost(
    connect: Callable[..., Client], gateway: Gateway, broker: Broker
) -> None:
    gateway.subscribe("up/#")
    client = connect()
    run_until(client, "connected")
    client("subscribe task")
    run_until(client, "subscribed")
    client("publish up/1 0 0 01")
    run_until(client, "published")
    broker.kill()
    run_until(client, "lost cause=stream-closed")
    client("publish up/2 0 0 02")  # waits for the broker
    client("run 300")
    assert client.state() != "online"
    broker.start()
    run_until(client, "connected")
    assert run_until(client, "published").startswith("published id=")
    client("subscribe task")
    run_until(client, "subscribed")
    wait_until(lambda: gateway.client.is_connected())
    gateway.publish("task", b"\x42")
    assert run_until(client, "message").endswith("payload=42")
