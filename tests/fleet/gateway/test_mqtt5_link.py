"""The gateway's link, and a broker that does as the test says (test_daemon.py has a real one)."""

from __future__ import annotations

import queue
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mqtt5
import pytest
from mqtt5 import ConnAckReasonCode, QoS

from fleet.errors import BrokerError, BrokerRefusedError
from fleet.gateway import mqtt5_link
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.config import BrokerSettings
from fleet.gateway.link import Message
from fleet.gateway.mqtt5_link import Mqtt5Link
from tests.patience import PATIENCE_SECONDS


class Ears:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.connections: queue.Queue[None] = queue.Queue()
        self.messages: queue.Queue[Message] = queue.Queue()
        self.failures: queue.Queue[BrokerError] = queue.Queue()

    def on_connected(self) -> None:
        self.connections.put(None)

    def on_messages(self, messages: Any) -> None:
        for message in messages:
            self.messages.put(message)

    def on_failed(self, error: BrokerError) -> None:
        self.failures.put(error)


class Session:
    """The broker's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._heard = b""

    def read(self) -> mqtt5.Packet:
        while True:
            try:
                packet, used = mqtt5.read(memoryview(self._heard))
            except IndexError:
                data = self.socket.recv(4096)
                assert data, "the link closed the connection"
                self._heard += data
                continue
            self._heard = self._heard[used:]
            return packet

    def is_quiet(self) -> bool:
        """Whether nothing comes for a moment."""
        self.socket.settimeout(0.2)
        try:
            self._heard += self.socket.recv(4096)
        except TimeoutError:
            return not self._heard
        finally:
            self.socket.settimeout(PATIENCE_SECONDS)
        return False

    def send(self, *packets: mqtt5.Packet) -> None:
        self.socket.sendall(b"".join(packet.write() for packet in packets))


class Site:
    """A listening socket, and a link that connects to it."""

    def __init__(self, folder: Path, ca_file: Path | None = None) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(PATIENCE_SECONDS)
        self.tls: ssl.SSLContext | None = None
        password_file = folder / "password"
        password_file.write_text("secret\n")
        settings = BrokerSettings(
            host="localhost" if ca_file else "127.0.0.1",
            port=self.server.getsockname()[1],
            user="north",
            password_file=password_file,
            ca_file=ca_file,
        )
        self.ears = Ears()
        self.link = Mqtt5Link(settings, self.ears)
        self.connects: list[mqtt5.ConnectPacket] = []

    def accept(self, **answer: Any) -> Session:
        """The next connection, with this answer to its login."""
        connection, _ = self.server.accept()
        connection.settimeout(PATIENCE_SECONDS)
        if self.tls:
            connection = self.tls.wrap_socket(connection, server_side=True)
        session = Session(connection)
        connect = session.read()
        assert isinstance(connect, mqtt5.ConnectPacket)
        self.connects.append(connect)
        session.send(mqtt5.ConnAckPacket(**answer))
        return session

    def connected(self, **answer: Any) -> Session:
        """Likewise, and the link has been told of it."""
        session = self.accept(**answer)
        self.ears.connections.get(timeout=PATIENCE_SECONDS)
        return session

    def close(self) -> None:
        self.server.close()
        self.link.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    found.link.start()
    yield found
    found.close()


def published(number: int, qos: int = 1) -> Publish:
    return Publish(f"topic/{number}", bytes([number]), retain=False, qos=qos)


def topics_of(*packets: mqtt5.Packet) -> list[str]:
    return [packet.topic for packet in packets if isinstance(packet, mqtt5.PublishPacket)]


def test_a_session_is_clean_and_logs_in(site: Site) -> None:
    site.connected()
    (connect,) = site.connects
    assert (connect.client_id, connect.username, connect.password) == ("north", "north", b"secret")
    assert connect.clean_start
    assert connect.session_expiry_interval == 0


@pytest.mark.parametrize("most", [1, 7, 5000])
def test_messages_come_in_order_however_the_stream_is_cut(site: Site, most: int) -> None:
    draw = random.Random(most)
    wanted = [
        Message(f"topic/{n}", draw.randbytes(draw.choice([0, 1, 200, 3000])), draw.random() < 0.5)
        for n in range(20)
    ]
    stream = b"".join(
        mqtt5.PublishPacket(topic, payload, retain=retained).write()
        for topic, payload, retained in wanted
    )
    session = site.connected()
    session.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while stream:
        length = draw.randint(1, most)
        session.socket.sendall(stream[:length])
        stream = stream[length:]
    assert [site.ears.messages.get(timeout=PATIENCE_SECONDS) for _ in wanted] == wanted


def test_a_publication_has_all_its_properties(site: Site) -> None:
    session = site.connected()
    message = Publish("a/task", b"payload", True, 1, expiry_seconds=60, response_topic="a/delta")
    site.link.publish(message)
    packet = session.read()
    assert isinstance(packet, mqtt5.PublishPacket)
    assert (packet.topic, packet.payload, packet.retain) == ("a/task", b"payload", True)
    assert packet.qos == QoS.AT_LEAST_ONCE
    assert (packet.message_expiry_interval, packet.response_topic) == (60, "a/delta")


def test_subscriptions_have_qos_0_and_their_options(site: Site) -> None:
    session = site.connected()
    site.link.subscribe([Filter("a/+"), Filter("b", no_local=True, retain_as_published=True)])
    site.link.unsubscribe(["a/+"])
    subscribe, unsubscribe = session.read(), session.read()
    assert isinstance(subscribe, mqtt5.SubscribePacket)
    options = [(f.pattern, f.no_local, f.retain_as_published) for f in subscribe.topic_filters]
    assert options == [("a/+", False, False), ("b", True, True)]
    assert all(f.max_qos == QoS.AT_MOST_ONCE for f in subscribe.topic_filters)
    assert isinstance(unsubscribe, mqtt5.UnsubscribePacket)
    assert unsubscribe.patterns == ["a/+"]


def test_no_more_is_under_way_than_the_broker_wants_and_the_order_stays(site: Site) -> None:
    session = site.connected(receive_max=2)
    for number in range(4):
        site.link.publish(published(number))
    site.link.publish(published(4, qos=0))
    first, second = session.read(), session.read()
    assert isinstance(first, mqtt5.PublishPacket)
    assert isinstance(second, mqtt5.PublishPacket)
    assert topics_of(first, second) == ["topic/0", "topic/1"]
    assert first.packet_id is not None
    assert second.packet_id is not None
    assert first.packet_id != second.packet_id
    assert session.is_quiet()
    session.send(mqtt5.PubAckPacket(first.packet_id))
    assert topics_of(session.read()) == ["topic/2"]
    assert session.is_quiet()
    session.send(mqtt5.PubAckPacket(second.packet_id))
    assert topics_of(session.read(), session.read()) == ["topic/3", "topic/4"]


def test_a_publication_that_the_broker_refuses_makes_room_and_is_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    session = site.connected(receive_max=1)
    site.link.publish(published(0))
    site.link.publish(published(1))
    packet = session.read()
    assert isinstance(packet, mqtt5.PublishPacket)
    assert packet.packet_id is not None
    refusal = mqtt5.PubAckReasonCode.NOT_AUTHORIZED
    session.send(mqtt5.PubAckPacket(packet.packet_id, reason_code=refusal))
    assert topics_of(session.read()) == ["topic/1"]
    assert "refuses a publication (not authorized); does its ACL" in caplog.text


def test_nothing_is_carried_over_to_the_next_connection(site: Site) -> None:
    site.link.publish(published(0))  # there is no connection yet
    session = site.connected(receive_max=1)
    site.link.publish(published(1))
    site.link.publish(published(2))  # waits for room
    assert topics_of(session.read()) == ["topic/1"]
    session.socket.close()
    session = site.connected(receive_max=1)
    site.link.publish(published(3))
    assert topics_of(session.read()) == ["topic/3"]
    assert site.connects[1].clean_start


@pytest.mark.parametrize(
    "leave",
    [
        lambda session: session.socket.sendall(b"\xff\x00"),
        lambda session: session.send(mqtt5.DisconnectPacket()),
        lambda session: session.socket.shutdown(socket.SHUT_RDWR),
    ],
    ids=["bytes that aren't MQTT", "goodbye", "end of the stream"],
)
def test_a_connection_that_ends_is_made_again(site: Site, leave: Callable[[Session], None]) -> None:
    leave(site.connected())
    site.connected()


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(b"\x30\x05\x00\x02\xff\xfe\x00", id="a topic that isn't UTF-8"),
        pytest.param(b"\xff\xff\xff\xff\xff\x01", id="a length without end"),
        pytest.param(b"\x00\x00", id="no packet"),
    ],
)
def test_a_broker_that_talks_nonsense_is_left_and_asked_again(site: Site, nonsense: bytes) -> None:
    session = site.connected()
    session.socket.sendall(nonsense)
    after = site.connected()
    after.send(mqtt5.PublishPacket("topic", payload=b"sense"))
    assert site.ears.messages.get(timeout=PATIENCE_SECONDS).payload == b"sense"
    assert site.ears.failures.empty()


def test_a_broker_that_falls_silent_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt5_link, "PING_SECONDS", 2.0)  # in which a busy machine answers, too
    session = site.connected()
    assert isinstance(session.read(), mqtt5.PingReqPacket)
    session.send(mqtt5.PingRespPacket())
    assert isinstance(session.read(), mqtt5.PingReqPacket)
    site.connected()  # no answer this time


def test_a_busy_broker_is_asked_again_and_one_that_refuses_the_login_is_not(site: Site) -> None:
    site.accept(reason_code=ConnAckReasonCode.SERVER_BUSY)
    site.accept(reason_code=ConnAckReasonCode.NOT_AUTHORIZED)
    error = site.ears.failures.get(timeout=PATIENCE_SECONDS)
    assert isinstance(error, BrokerRefusedError)
    assert "refuses user north (not authorized): wrong user name or password" in str(error)
    assert site.ears.connections.empty()


def test_stop_sends_what_is_waiting_and_says_goodbye(site: Site) -> None:
    session = site.connected()
    for number in range(50):
        site.link.publish(published(number))
    site.link.stop()
    packets = [session.read() for _ in range(51)]
    assert topics_of(*packets) == [f"topic/{number}" for number in range(50)]
    assert isinstance(packets[-1], mqtt5.DisconnectPacket)


def test_stop_does_not_wait_for_a_broker_that_never_answers(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.link.start()
    connection, _ = site.server.accept()
    site.close()
    assert not site.link._thread.is_alive()
    connection.close()


def test_a_certificate_authority_means_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here that makes a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {key} -out {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )
    site = Site(tmp_path, certificate)
    site.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    site.tls.load_cert_chain(certificate, key)
    site.link.start()
    try:
        session = site.connected()
        big = mqtt5.PublishPacket("topic/1", bytes(100_000))
        session.send(big)
        assert site.ears.messages.get(timeout=PATIENCE_SECONDS).payload == bytes(100_000)
        site.link.publish(published(3))
        assert topics_of(session.read()) == ["topic/3"]
    finally:
        site.close()
