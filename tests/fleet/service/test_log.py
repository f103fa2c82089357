"""Logs are JSON that names what it is about, and no secret gets in."""

from __future__ import annotations

import json
import logging

import pytest

from fleet.service.log import JsonLines
from tests.fleet.service.conftest import Site


def said(message: str, *values: object, of: str = "", **about: object) -> dict[str, object]:
    logger = logging.getLogger("fleet.x")
    record = logger.makeRecord("fleet.x", logging.INFO, "", 0, message, values, None, extra=about)
    line = JsonLines(of).format(record)
    assert "\n" not in line
    found: dict[str, object] = json.loads(line)
    return found


def test_what_a_line_is_about_are_fields_of_their_own() -> None:
    about = {"campaign": "ab" * 8, "round": 7, "device": "d-1", "gateway": "gw_1"}
    line = said("it is %s\nslow", "very", **about)
    assert (line["campaign"], line["round"], line["device"], line["gateway"]) == (
        "ab" * 8,
        7,
        "d-1",
        "gw_1",
    )
    assert (line["level"], line["logger"]) == ("info", "fleet.x")
    assert "campaign" not in said("nothing of the kind")
    assert said("all lines of a gateway", of="north")["gateway"] == "north"


def test_prose_is_not_taken_for_an_id() -> None:
    line = said("no device could be asked in round 3, nor gateway north of campaign " + "ab" * 8)
    assert line.keys() == {"at", "level", "logger", "message"}


def test_a_token_is_cut_out_of_messages_and_tracebacks() -> None:
    secret = f"tf_{'0' * 16}_{'5' * 64}"
    assert said("it was %s", secret)["message"] == "it was tf_…"
    try:
        raise ValueError(secret)
    except ValueError as error:
        kind = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "oh", (), kind)
    line = json.loads(JsonLines().format(record))
    assert "ValueError" in line["traceback"]
    assert secret not in line["traceback"]


def test_a_whole_session_logs_no_secret(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("fleet.service").debug("the log is on")
    client = site.client(why="because")
    told = [
        client.rotate_device("d0").password,
        client.add_gateway("gw2", "home").password,
        client.issue_token("bob", "viewer", 1).secret,
        client.add_webhook("http://h/", ["gate"]).secret,
    ]
    site.http.get("/v1/whoami", headers={"Authorization": f"Bearer {told[2]}x"})
    site.http.get("/v1/whoami", headers={"Authorization": f"Bearer {told[2]}"})
    site.ask("admin", "POST", "/v1/devices", content='{"devices": [{"password": "letmein-now"}]}')
    assert "the log is on" in caplog.text
    secrets = [*told, *site.tokens.values(), *site.passwords.values(), "letmein-now"]
    assert [one for one in secrets if one in caplog.text or one[-32:] in caplog.text] == []
