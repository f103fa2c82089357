"""A connection that speaks MQTT 5 in bytes.

Packets are read and written by `mqtt5`, the codec that gateways use: 0.2 µs to read a publication
of 500 bytes, 0.4 to write one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mqtt5
from mqtt5 import ConnAckReasonCode, DisconnectReasonCode, PubAckReasonCode, QoS, SubAckReasonCode

from simulator.broker.core import SECOND, Core
from simulator.broker.message import NO_PROPERTIES, Message, Properties, Will
from simulator.broker.session import Session, Subscription
from simulator.broker.topics import is_filter, is_topic

_QOS = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE)
_LONGEST_PACKET = 268_435_460
_NO_RECEIVE_MAXIMUM = 65535
_KEEP_ALIVE_FACTOR = 1.5  # MQTT 5, 3.1.2.10
_SHARED = "$share/"
_CONNECT = 0x10
_FLAGS_PLACE = 7  # behind "MQTT" and the version
_RESERVED, _WILL, _WILL_OPTIONS = 0x01, 0x04, 0x38  # MQTT 5, 3.1.2.3


class _Violation(Exception):
    """The client has broken the protocol; None: it is told nothing."""

    def __init__(self, reason: DisconnectReasonCode | None) -> None:
        super().__init__(reason)
        self.reason = reason


_MALFORMED = DisconnectReasonCode.MALFORMED_PACKET
_PROTOCOL_ERROR = DisconnectReasonCode.PROTOCOL_ERROR


class Connection:
    """The broker's end of a transport. Bytes that it has for the client wait for ``take``."""

    __slots__ = (
        "_core",
        "_heard_at",
        "_keep_alive",
        "_on_ready",
        "_output",
        "_packet_limit",
        "_partial",
        "_session",
        "closed",
    )

    def __init__(self, core: Core, on_ready: Callable[[], None]) -> None:
        """See `Broker.connect`."""
        self.closed = False
        """The broker has ended the connection; what it has said before may still be taken."""
        self._core = core
        self._on_ready = on_ready
        self._output = bytearray()
        self._partial = b""
        self._packet_limit = _LONGEST_PACKET
        self._session: Session | None = None
        self._keep_alive = 0.0
        self._heard_at = 0.0
        core.opened(self)

    @property
    def pending(self) -> int:
        """How many bytes there are for the client."""
        return len(self._output)

    def take(self, limit: int | None = None) -> bytes:
        """Bytes for the client, at most ``limit``."""
        if limit is None or limit >= len(self._output):
            data = bytes(self._output)
            self._output.clear()
        else:
            data = bytes(self._output[:limit])
            del self._output[:limit]
        return data

    def close(self) -> None:
        """The transport has broken, or the client has ended it; its will is published."""
        self._output.clear()
        self._end(with_will=True)

    def receive(self, data: bytes) -> None:
        """Handle what the client has sent; a packet may come in parts."""
        if self.closed:
            return
        self._heard_at = self._core.clock()
        heard = memoryview(self._partial + data if self._partial else data)
        start = 0
        try:
            if self._session is None:
                _check_connect(heard)
            while start < len(heard) and not self.closed:
                packet, used = _read(heard[start:])
                if not used:
                    self._check_size(heard[start:])
                    break
                if used > self._core.settings.max_packet_size:
                    self._check_size(heard[start:])
                start += used
                self._handle(packet)
        except _Violation as violation:
            if violation.reason is not None and self._session is not None:
                self._write(mqtt5.DisconnectPacket(reason_code=violation.reason))
            self._end(with_will=True)
            self._on_ready()
        self._partial = b"" if self.closed else bytes(heard[start:])

    def _check_size(self, heard: memoryview) -> None:
        length = _length(heard)
        if length is not None and 1 + length > self._core.settings.max_packet_size:
            raise _Violation(DisconnectReasonCode.PACKET_TOO_LARGE)

    # ---- packets ---------------------------------------------------------------------

    def _handle(self, packet: mqtt5.Packet | None) -> None:
        session = self._session
        if session is None:
            if not isinstance(packet, mqtt5.ConnectPacket):
                raise _Violation(None)
            self._connect(packet)
            return
        match packet:
            case mqtt5.PublishPacket():
                self._publish(session, packet)
            case mqtt5.PubAckPacket(packet_id=packet_id) if packet_id:
                session.acknowledged(packet_id, self._heard_at)
            case mqtt5.PingReqPacket():
                self._write(mqtt5.PingRespPacket())
            case mqtt5.SubscribePacket():
                self._subscribe(session, packet)
            case mqtt5.UnsubscribePacket():
                self._unsubscribe(session, packet)
            case mqtt5.DisconnectPacket():
                self._disconnect(session, packet)
            case mqtt5.ConnectPacket():
                # As Mosquitto: no will, and no session any more.
                session.expiry_seconds = 0
                self._end(with_will=False)
                self._on_ready()
            case _:
                raise _Violation(_PROTOCOL_ERROR)

    def _connect(self, packet: mqtt5.ConnectPacket) -> None:
        core = self._core
        will = _will(packet.will) if packet.will is not None else None
        client_id = packet.client_id or f"auto-{core.next_number()}"
        refusal = None
        if packet.authentication_method is not None:
            refusal = ConnAckReasonCode.BAD_AUTHENTICATION_METHOD
        elif will is not None and will.qos > 1:
            refusal = ConnAckReasonCode.QUALITY_NOT_SUPPORTED
        elif core.access is not None and not core.access.may_connect(
            client_id, packet.username, packet.password
        ):
            refusal = ConnAckReasonCode.NOT_AUTHORIZED
        if refusal is not None:
            self._write(mqtt5.ConnAckPacket(reason_code=refusal))
            raise _Violation(None)
        if packet.max_packet_size is not None:
            self._packet_limit = packet.max_packet_size
        settings = core.settings
        receive_maximum = packet.receive_max
        if receive_maximum == _NO_RECEIVE_MAXIMUM:
            receive_maximum = settings.max_inflight_messages
        self._session, resumes = core.begin(
            self,
            client_id,
            clean_start=packet.clean_start,
            expiry_seconds=packet.session_expiry_interval,
            receive_maximum=receive_maximum,
            will=will,
        )
        keep_alive = packet.keep_alive
        if not 0 < keep_alive <= settings.max_keepalive:
            keep_alive = settings.max_keepalive
        self._keep_alive = keep_alive * _KEEP_ALIVE_FACTOR * SECOND
        core.call_at(self._heard_at + self._keep_alive, self._check_keep_alive)
        self._write(
            mqtt5.ConnAckPacket(
                session_present=resumes,
                assigned_client_id=None if packet.client_id else client_id,
                server_keep_alive=None if keep_alive == packet.keep_alive else keep_alive,
                receive_max=settings.max_inflight_messages,
                max_qos=QoS.AT_LEAST_ONCE,
                max_packet_size=settings.max_packet_size,
                subscription_id_available=False,
                shared_subscription_available=False,
            )
        )
        self._session.resume(self._heard_at)

    def _check_keep_alive(self) -> None:
        if self.closed:
            return
        due = self._heard_at + self._keep_alive
        if due > self._core.clock():
            self._core.call_at(due, self._check_keep_alive)
        else:
            self._end(with_will=True)
            self._on_ready()

    def _publish(self, session: Session, packet: mqtt5.PublishPacket) -> None:
        qos = packet.qos.value
        if qos > 1:
            raise _Violation(DisconnectReasonCode.QOS_NOT_SUPPORTED)
        if packet.topic_alias is not None:
            raise _Violation(DisconnectReasonCode.TOPIC_ALIAS_INVALID)
        topic, packet_id = packet.topic, packet.packet_id
        if (qos and not packet_id) or not is_topic(topic):
            raise _Violation(_PROTOCOL_ERROR)
        interval = packet.message_expiry_interval
        expires = self._heard_at + interval * SECOND if interval else None
        message = Message(
            topic,
            packet.payload,
            qos,
            packet.retain,
            session.client_id,
            expires,
            _properties(packet),
        )
        reason = self._core.publish(message)
        if packet_id:
            self._write(mqtt5.PubAckPacket(packet_id, reason_code=PubAckReasonCode(reason)))

    def _subscribe(self, session: Session, packet: mqtt5.SubscribePacket) -> None:
        filters = packet.topic_filters
        if not packet.packet_id or not filters:
            raise _Violation(_MALFORMED)
        if packet.subscription_id is not None:
            raise _Violation(DisconnectReasonCode.SUBSCRIPTION_IDS_NOT_SUPPORTED)
        if not all(is_filter(one.pattern) for one in filters):
            raise _Violation(_MALFORMED)
        reasons: list[SubAckReasonCode] = []
        asks_for_retained: list[tuple[str, int]] = []
        for one in filters:
            if one.pattern.startswith(_SHARED):
                reasons.append(SubAckReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
                continue
            qos = min(one.max_qos.value, 1)
            reasons.append(SubAckReasonCode(qos))
            wanted = Subscription(qos, one.no_local, one.retain_as_published)
            is_new = self._core.subscribe(session, one.pattern, wanted)
            handling = one.retain_handling.value
            if handling == 0 or (handling == 1 and is_new):
                asks_for_retained.append((one.pattern, qos))
        self._write(mqtt5.SubAckPacket(packet.packet_id, reasons))
        for pattern, qos in asks_for_retained:
            self._core.deliver_retained(session, pattern, qos)

    def _unsubscribe(self, session: Session, packet: mqtt5.UnsubscribePacket) -> None:
        patterns = packet.patterns
        if not packet.packet_id or not patterns or not all(map(is_filter, patterns)):
            raise _Violation(_MALFORMED)
        reasons = [
            mqtt5.UnsubAckReasonCode.SUCCESS
            if self._core.unsubscribe(session, pattern)
            else mqtt5.UnsubAckReasonCode.NO_SUBSCRIPTION_EXISTED
            for pattern in patterns
        ]
        self._write(mqtt5.UnsubAckPacket(packet.packet_id, reasons))

    def _disconnect(self, session: Session, packet: mqtt5.DisconnectPacket) -> None:
        interval = packet.session_expiry_interval
        if interval is not None:
            if interval and not session.expiry_seconds:
                raise _Violation(_PROTOCOL_ERROR)
            session.expiry_seconds = interval
        # As Mosquitto: any other reason, too, lets the will be.
        with_will = packet.reason_code is DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
        self._end(with_will=with_will)
        self._on_ready()

    # ---- out -------------------------------------------------------------------------

    def _write(self, packet: mqtt5.Packet) -> None:
        self._append(packet.write())

    def _append(self, data: bytes) -> None:
        output = self._output
        was_empty = not output
        output += data
        if was_empty:
            self._on_ready()

    def send(
        self, message: Message, qos: int, retain: bool, packet_id: int, duplicate: bool
    ) -> bool:
        """See `Endpoint`."""
        interval = None
        if message.expires is not None:
            # Whole seconds that it waited are taken off.
            interval = math.ceil((message.expires - self._core.clock()) / SECOND)
        properties = message.properties
        if properties is NO_PROPERTIES:
            packet = mqtt5.PublishPacket(
                message.topic,
                message.payload,
                qos=_QOS[qos],
                retain=retain,
                packet_id=packet_id or None,
                duplicate=duplicate,
                message_expiry_interval=interval,
            )
        else:
            packet = mqtt5.PublishPacket(
                message.topic,
                message.payload,
                qos=_QOS[qos],
                retain=retain,
                packet_id=packet_id or None,
                duplicate=duplicate,
                message_expiry_interval=interval,
                payload_format_indicator=properties.payload_format_indicator,
                content_type=properties.content_type,
                response_topic=properties.response_topic,
                correlation_data=properties.correlation_data,
                user_properties=list(properties.user_properties),
            )
        data = packet.write()
        if len(data) - 1 > self._packet_limit:  # as Mosquitto: the first byte isn't counted
            return False
        self._append(data)
        return True

    def _end(self, *, with_will: bool) -> None:
        if self.closed:
            return
        self.closed = True
        self._partial = b""
        self._core.closed(self)
        session, self._session = self._session, None
        if session is not None:
            self._core.lost(session, with_will=with_will)

    def hang_up(self) -> None:
        """See `Endpoint`."""
        self._session = None
        self._end(with_will=False)
        self._on_ready()

    def vanish(self) -> None:
        """See `Endpoint`."""
        self._output.clear()
        self.hang_up()


def _read(heard: memoryview) -> tuple[mqtt5.Packet | None, int]:
    """The first packet and its length, 0 where a part of it is still to come."""
    try:
        return mqtt5.read(heard)
    except IndexError:
        return None, 0
    except ValueError:
        raise _Violation(_MALFORMED) from None
    except BaseException as error:
        # What `mqtt5` 0.8 makes of text that isn't UTF-8; its panics are no Exception.
        if type(error).__name__ == "PanicException":
            raise _Violation(_MALFORMED) from None
        raise


def _check_connect(heard: memoryview) -> None:
    """Refuse what `mqtt5` lets pass, or waits for the rest of, where a client is to say CONNECT."""
    if heard and heard[0] != _CONNECT:
        raise _Violation(None)
    body = next((place + 1 for place, byte in enumerate(heard) if place and byte < 0x80), 0)
    if body and len(heard) > body + _FLAGS_PLACE:
        flags = heard[body + _FLAGS_PLACE]
        if flags & _RESERVED or (flags & _WILL_OPTIONS and not flags & _WILL):
            raise _Violation(None)


def _length(heard: memoryview) -> int | None:
    """The remaining length that a packet's first bytes give, where they have come."""
    length = 0
    for place, byte in enumerate(heard[1:5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return length
    return None


def _properties(packet: mqtt5.PublishPacket | mqtt5.Will) -> Properties:
    indicator = packet.payload_format_indicator
    content_type = packet.content_type
    response_topic = packet.response_topic
    correlation_data = packet.correlation_data
    user_properties = packet.user_properties
    if (
        indicator
        or user_properties
        or content_type is not None
        or response_topic is not None
        or correlation_data is not None
    ):
        return Properties(
            indicator, content_type, response_topic, correlation_data, tuple(user_properties)
        )
    return NO_PROPERTIES


def _will(will: mqtt5.Will) -> Will:
    if not is_topic(will.topic):
        raise _Violation(None)
    return Will(
        will.topic,
        will.payload or b"",
        will.qos.value,
        will.retain,
        will.will_delay_interval,
        will.message_expiry_interval or None,
        _properties(will),
    )
