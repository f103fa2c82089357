"""A link over TCP or TLS with the packets of `mqtt5`, a sans-I/O codec that is written in Rust.

A clean session for every connection; one that breaks is made again with jitter. Nothing is carried
over from one to the next: the round logic looks at what the broker has, and devices send again what
there is no receipt for. So subscriptions have QoS 0, and an acknowledgement of what was published
only makes room for more.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import random
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import mqtt5
from mqtt5 import ConnAckReasonCode, QoS

from fleet.errors import BrokerError, BrokerRefusedError
from fleet.gateway.actions import Filter, Publish
from fleet.gateway.config import BrokerSettings
from fleet.gateway.link import Listener, Message

KEEP_ALIVE_SECONDS = 30
PING_SECONDS = 20.0  # and a broker that says nothing for so long after one is gone
CONNECT_SECONDS = 10.0
MIN_RECONNECT_SECONDS, MAX_RECONNECT_SECONDS = 0.25, 30.0
FLUSH_SECONDS = 2.0
STOP_SECONDS = 2 * FLUSH_SECONDS + 5
MAX_PACKET_ID = 65535
FIRST_FAILURE = 128  # of all reason codes

# Refusals that trying again doesn't heal (MQTT 5, 3.2.2.2).
_FINAL_REFUSALS = {
    ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION.value: (
        "it doesn't speak MQTT 5; use Mosquitto 2 or another broker that does"
    ),
    ConnAckReasonCode.CLIENT_ID_NOT_VALID.value: (
        "the client identifier isn't allowed; check 'gateway' and 'user'"
    ),
    ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD.value: "wrong user name or password",
    ConnAckReasonCode.NOT_AUTHORIZED.value: "wrong user name or password",
    ConnAckReasonCode.BANNED.value: "the client is banned",
    ConnAckReasonCode.BAD_AUTHENTICATION_METHOD.value: "it wants another way of authentication",
}

log = logging.getLogger(__name__)


class _Subscribe(NamedTuple):
    filters: tuple[Filter, ...]


class _Unsubscribe(NamedTuple):
    topics: tuple[str, ...]


_Outgoing: TypeAlias = Publish | _Subscribe | _Unsubscribe


class Mqtt5Link:
    """See :class:`fleet.gateway.link.Link`; owns a thread with an event loop."""

    def __init__(self, settings: BrokerSettings, listener: Listener) -> None:
        """Nothing is connected before ``start``; ConfigurationError without a password."""
        self._settings = settings
        self._password = settings.password()
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stopping: asyncio.Future[None] = self._loop.create_future()
        self._connection: _Connection | None = None  # one that the broker has let in

    @property
    def address(self) -> str:
        """Host and port of the broker."""
        return f"{self._settings.host}:{self._settings.port}"

    def start(self) -> None:
        """See `Link`."""
        self._thread.start()

    def stop(self) -> None:
        """See `Link`."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stopping.cancel)
            self._thread.join(STOP_SECONDS)
        elif self._thread.ident is None:  # never started
            self._loop.close()

    def publish(self, message: Publish) -> None:
        """See `Link`."""
        self._send(message)

    def subscribe(self, filters: Sequence[Filter]) -> None:
        """See `Link`."""
        self._send(_Subscribe(tuple(filters)))

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """See `Link`."""
        self._send(_Unsubscribe(tuple(topics)))

    @property
    def waiting(self) -> int | None:
        """See `Link`."""
        connection = self._connection
        return None if connection is None else connection.waiting

    def _send(self, what: _Outgoing) -> None:
        connection = self._connection
        if connection is not None:
            connection.send(what)

    # ---- the link's thread -----------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._stay_connected())
        except BrokerError as error:
            self._listener.on_failed(error)
        except Exception as error:  # a gateway without its connection must not live on silently
            log.exception("the connection to broker %s failed", self.address)
            self._listener.on_failed(
                BrokerError(f"broker {self.address}: {error!r}; the log has the traceback")
            )
        finally:
            self._connection = None
            self._loop.close()

    async def _stay_connected(self) -> None:
        delay = MIN_RECONNECT_SECONDS
        while not self._stopping.done():
            connecting = asyncio.ensure_future(self._connect())
            try:
                await self._first(connecting)
                if self._stopping.done():
                    return
                connection = await connecting
            except (OSError, TimeoutError) as error:
                log.warning("broker %s can't be reached: %s; trying again", self.address, error)
            else:
                delay = MIN_RECONNECT_SECONDS
                await self._serve(connection)
            finally:
                connecting.cancel()
            # Jitter, so that many gateways don't come back in one instant.
            await self._first(seconds=delay * random.uniform(0.5, 1.5))
            delay = min(2 * delay, MAX_RECONNECT_SECONDS)

    async def _first(self, *others: asyncio.Future[Any], seconds: float | None = None) -> None:
        """Wait for one of these, for ``stop``, or so long."""
        await asyncio.wait(
            [self._stopping, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )

    async def _connect(self) -> _Connection:
        """A connection that the broker has let in; OSError where there is none to be had."""
        settings, loop = self._settings, self._loop
        tls = ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else None
        connection = _Connection(loop, self._listener)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(
                    lambda: connection, settings.host, settings.port, ssl=tls
                )
                connection.write(
                    mqtt5.ConnectPacket(
                        settings.user,
                        username=settings.user,
                        password=self._password.encode(),
                        clean_start=True,
                        keep_alive=KEEP_ALIVE_SECONDS,
                    )
                )
                reason = await connection.answer
            if reason == ConnAckReasonCode.SUCCESS:
                return connection
            raise self._refusal(reason)
        except BaseException:
            connection.close()
            raise

    def _refusal(self, reason: ConnAckReasonCode) -> Exception:
        remedy = _FINAL_REFUSALS.get(reason.value)
        if remedy is None:
            return ConnectionRefusedError(f"it says: {_words(reason)}")
        settings = self._settings
        return BrokerRefusedError(
            f"broker {self.address} refuses user {settings.user} ({_words(reason)}): "
            f"{remedy}; check 'user' and {settings.password_file} against the "
            f"broker's password file"
        )

    async def _serve(self, connection: _Connection) -> None:
        """Until the connection ends, or all has to."""
        log.info("connected to broker %s", self.address)
        self._connection = connection
        self._listener.on_connected()
        await self._first(connection.lost)
        self._connection = None
        if connection.lost.done():
            log.warning("lost broker %s (%s)", self.address, connection.lost.result())
            return
        await connection.flush(FLUSH_SECONDS)
        connection.write(mqtt5.DisconnectPacket())
        connection.close()
        await asyncio.wait([connection.lost], timeout=FLUSH_SECONDS)


class _Connection(asyncio.Protocol):
    """One session, from its first byte to its last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self.answer: asyncio.Future[ConnAckReasonCode] = loop.create_future()
        """What the broker says to the login."""
        self.lost: asyncio.Future[str] = loop.create_future()
        """Why the connection has ended."""
        self._loop = loop
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        # Appended to by any thread.
        self._waiting: deque[_Outgoing] = deque()
        self._awake = False
        self._room = 0
        """How many more publications the broker wants before it acknowledges one."""
        self._ids = itertools.cycle(range(1, MAX_PACKET_ID + 1))
        self._silent = False

    # ---- out -------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How much waits to be sent."""
        return len(self._waiting)

    def send(self, what: _Outgoing) -> None:
        """Send in order of the calls; from any thread."""
        self._waiting.append(what)
        self._wake_up()

    def _wake_up(self) -> None:
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send_waiting)

    def _send_waiting(self) -> None:
        self._awake = False
        packets: list[bytes] = []
        while self._waiting:
            what = self._waiting[0]
            if isinstance(what, Publish) and what.qos and not self._room:
                break
            self._waiting.popleft()
            packets.append(self._packet(what))
        if packets and self._transport is not None:
            self._transport.write(b"".join(packets))

    def _packet(self, what: _Outgoing) -> bytes:
        match what:
            case Publish():
                return self._publish(what)
            case _Subscribe(filters):
                wanted = [
                    mqtt5.TopicFilter(
                        one.topic,
                        max_qos=QoS.AT_MOST_ONCE,
                        no_local=one.no_local,
                        retain_as_published=one.retain_as_published,
                    )
                    for one in filters
                ]
                return mqtt5.SubscribePacket(next(self._ids), wanted).write()
            case _Unsubscribe(topics):
                return mqtt5.UnsubscribePacket(next(self._ids), list(topics)).write()

    def _publish(self, message: Publish) -> bytes:
        packet_id = None
        if message.qos:
            self._room -= 1
            # More would have to be under way than there is ever room for, to meet one again.
            packet_id = next(self._ids)
        return mqtt5.PublishPacket(
            message.topic,
            message.payload,
            qos=QoS.AT_LEAST_ONCE if message.qos else QoS.AT_MOST_ONCE,
            retain=message.retain,
            packet_id=packet_id,
            message_expiry_interval=message.expiry_seconds,
            response_topic=message.response_topic,
        ).write()

    def write(self, packet: mqtt5.Packet) -> None:
        """Send at once; from the loop's thread."""
        if self._transport is not None:
            self._transport.write(packet.write())

    async def flush(self, seconds: float) -> None:
        """Until all is sent, or so long."""
        end = self._loop.time() + seconds
        while self._transport is not None and self._loop.time() < end:
            if not self._waiting and not self._transport.get_write_buffer_size():
                return
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End it in order, if it isn't yet."""
        if self._transport is not None:
            self._transport.close()

    # ---- in: called by the event loop ------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop.call_later(PING_SECONDS, self._keep_alive)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._end(str(error or "it closed the connection"))

    def _end(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError(why))
        if not self.lost.done():
            self.lost.set_result(why)

    def _keep_alive(self) -> None:
        if self._transport is None:
            return
        if self._silent:
            self._abort("it says nothing any more")
            return
        self._silent = True
        self.write(mqtt5.PingReqPacket())
        self._loop.call_later(PING_SECONDS, self._keep_alive)

    def _abort(self, why: str) -> None:
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._silent = False
        heard = memoryview(self._heard + data if self._heard else data)
        messages: list[Message] = []
        start = 0
        while start < len(heard):
            try:
                packet, used = mqtt5.read(heard[start:])
            except IndexError:  # the rest of it is to come
                break
            except ValueError as error:
                self._abort(f"it sent what isn't MQTT: {error}")
                return
            except BaseException as error:
                # What `mqtt5` 0.8 makes of text that isn't UTF-8; its panics are no Exception.
                if type(error).__name__ != "PanicException":
                    raise
                self._abort("it sent what isn't MQTT: text that isn't UTF-8")
                return
            start += used
            if isinstance(packet, mqtt5.PublishPacket):
                messages.append(Message(packet.topic, packet.payload, packet.retain))
            else:
                self._control(packet)
        self._heard = bytes(heard[start:])
        if messages:
            self._listener.on_messages(messages)

    def _control(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.PubAckPacket(reason_code=reason):
                self._room += 1
                if reason.value >= FIRST_FAILURE:
                    log.error(
                        "the broker refuses a publication (%s); does its ACL let this gateway "
                        "write tasks and blobs of its fleet?",
                        _words(reason),
                    )
                if self._waiting:
                    self._wake_up()
            case mqtt5.SubAckPacket(reason_codes=reasons):
                for refusal in (one for one in reasons if one.value >= FIRST_FAILURE):
                    log.error("the broker refuses a subscription (%s)", _words(refusal))
            case mqtt5.ConnAckPacket(reason_code=answer, receive_max=room):
                self._room = room
                if not self.answer.done():
                    self.answer.set_result(answer)
            case mqtt5.DisconnectPacket(reason_code=why):
                self._end(f"it says: {_words(why)}")


def _words(reason: enum.IntEnum) -> str:
    return reason.name.lower().replace("_", " ")
