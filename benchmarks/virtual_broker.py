"""Messages a second of one core, and bytes a session, of the broker in virtual time.

    python -m benchmarks.virtual_broker [--devices N] [--messages M] [--json]

Devices are connections of bytes with a subscription and a will of their own, a gateway is a client
in the process. What is sent has 40 bytes of payload, and everything is taken as it comes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable

import mqtt5
from mqtt5 import QoS

from fleet.cli._output import console, table
from simulator.broker.broker import Broker
from simulator.broker.connection import Connection

PAYLOAD = bytes(40)
TAKEN_AT_ONCE = 1000


def status(number: int) -> str:
    return f"fleet/barn/dev/device{number:05}/status"


def task(number: int) -> str:
    return f"fleet/barn/to/device{number:05}/task"


def delta(number: int) -> str:
    return f"fleet/barn/gw/gateway/device{number:05}/delta"


def connect(broker: Broker, number: int) -> Connection:
    connection = broker.connect()
    connection.receive(
        mqtt5.ConnectPacket(
            f"device{number:05}",
            clean_start=True,
            keep_alive=60,
            receive_max=6,
            max_packet_size=768,
            will=mqtt5.Will(status(number), payload=PAYLOAD, qos=QoS(1), retain=True),
        ).write()
    )
    wanted = [mqtt5.TopicFilter(task(number).replace("task", "+"), max_qos=QoS(1))]
    connection.receive(mqtt5.SubscribePacket(1, wanted).write())
    connection.take()
    return connection


def measure(devices: int, messages: int) -> dict[str, int]:
    """Each way of a message, as often as asked for, over all devices in turn."""
    broker = Broker(lambda: 0.0)
    gateway = broker.attach("gateway")
    gateway.subscribe("fleet/barn/dev/+/status")
    gateway.subscribe("fleet/barn/gw/gateway/+/delta")
    tracemalloc.start()
    connections = [connect(broker, number) for number in range(devices)]
    bytes_of_session = tracemalloc.get_traced_memory()[0] / devices
    tracemalloc.stop()
    numbers = [number % devices for number in range(messages)]
    packets = [
        mqtt5.PublishPacket(delta(number), PAYLOAD, qos=QoS(1), packet_id=7).write()
        for number in range(devices)
    ]

    def in_the_process(topic: Callable[[int], str], retain: bool) -> None:
        for count, number in enumerate(numbers):
            gateway.publish(topic(number), PAYLOAD, retain=retain)
            if count % TAKEN_AT_ONCE == 0:
                gateway.take()

    def up() -> None:
        for count, number in enumerate(numbers):
            connection = connections[number]
            connection.receive(packets[number])
            connection.take()
            if count % TAKEN_AT_ONCE == 0:
                gateway.take()

    def down() -> None:
        for number in numbers:
            gateway.publish(task(number), PAYLOAD)
            connection = connections[number]
            packet, _ = mqtt5.read(memoryview(connection.take()))
            assert isinstance(packet, mqtt5.PublishPacket)
            assert packet.packet_id
            connection.receive(mqtt5.PubAckPacket(packet.packet_id).write())

    found = {"bytes_of_a_session": round(bytes_of_session)}
    ways: dict[str, Callable[[], None]] = {
        "client_to_client": lambda: in_the_process(delta, False),
        "client_to_client_retained": lambda: in_the_process(status, True),
        "bytes_to_client_acknowledged": up,
        "client_to_bytes_acknowledged": down,
    }
    for name, way in ways.items():
        begun = time.process_time()
        way()
        gateway.take()
        found[name] = round(messages / (time.process_time() - begun))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    found = measure(options.devices, options.messages)
    if options.json:
        print(json.dumps(found))
    else:
        rows = [(name.replace("_", " "), f"{figure:,}") for name, figure in found.items()]
        console().print(table(f"{options.devices:,} devices", ["what", "measured"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
