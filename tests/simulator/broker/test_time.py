"""What ends by itself, the same at Mosquitto and at the broker in virtual time.

Mosquitto counts whole seconds and looks at keep-alives every six, so one test waits for all.
"""

from __future__ import annotations

from mqtt5 import QoS

from .peers import Site, payloads

KEPT = {"clean_start": False, "session_expiry_interval": 600}


def test_messages_sessions_and_connections_end_in_their_time(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will/+"))
    for name, seconds in (("short", 1), ("long", 600)):
        client = site.client(
            name,
            clean_start=False,
            session_expiry_interval=seconds,
            will=site.will(f"will/session-{name}", will_delay_interval=300),
        )
        client.subscribe(site.topic("x"))
        client.cut()
    publisher = site.client("publisher")
    for name, seconds in (("short", 1), ("long", 600), ("forever", None)):
        publisher.publish(site.topic("x"), name.encode(), message_expiry_interval=seconds)
        publisher.publish(
            site.topic(f"retained/{name}"),
            name.encode(),
            retain=True,
            message_expiry_interval=seconds,
        )
    site.client(
        "delayed",
        will=site.will("will/delayed", will_delay_interval=1),
        clean_start=False,
        session_expiry_interval=600,
    ).cut()
    site.client(
        "delayed-no-session", will=site.will("will/delayed-no-session", will_delay_interval=1)
    ).cut()
    for name, options in (("back", KEPT), ("back-clean", {"clean_start": True})):
        will = site.will(f"will/{name}", will_delay_interval=1)
        site.client(name, will=will, **KEPT).cut()
        site.client(name, **options)
    silent = site.client(
        "silent", keep_alive=1, will=site.will("will/silent", qos=QoS.AT_MOST_ONCE)
    )
    wills: list[str] = []

    def said_all() -> bool:
        wills.extend(m.topic.removeprefix(site.topic("will/")) for m in watcher.messages())
        return len(wills) >= 4

    site.peer.until(said_all)
    # Their order within a second is Mosquitto's own.
    assert sorted(wills) == ["delayed", "delayed-no-session", "session-short", "silent"]
    assert silent.until_closed() == []

    client, answer = site.connecting("short", **KEPT)
    assert not answer.session_present
    client, answer = site.connecting("long", **KEPT)
    assert answer.session_present
    messages = client.messages()
    assert payloads(messages) == [b"long", b"forever"]
    left, forever = (message.message_expiry_interval for message in messages)
    assert left is not None
    assert 500 < left < 600
    assert forever is None
    late = site.client("late")
    late.subscribe(site.topic("retained/+"))
    messages = late.messages()
    assert payloads(messages) == [b"long", b"forever"]
    left = messages[0].message_expiry_interval
    assert left is not None
    assert 500 < left < 600
