"""Logs as JSON, a line an event, with what they are about in fields of their own."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys

_FIELDS = ("campaign", "round", "device", "gateway")
"""What whoever logs may give by `extra`: prose isn't searched for ids."""
_SECRET = re.compile(r"\btf_[0-9a-f]+_[A-Za-z0-9_-]+")


class JsonLines(logging.Formatter):
    """Campaign, round, device and gateway that a line is about are fields; tokens never get in."""

    def __init__(self, gateway: str = "") -> None:
        """`gateway` is the one whose process it is, if it is one's."""
        super().__init__()
        self._always = {"gateway": gateway} if gateway else {}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        message = _SECRET.sub("tf_…", record.getMessage())
        line: dict[str, object] = {
            "at": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        line |= self._always | {
            name: vars(record)[name] for name in _FIELDS if name in vars(record)
        }
        if record.exc_info:
            line["traceback"] = _SECRET.sub("tf_…", self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def log_as_json(gateway: str = "") -> None:
    """All logs of this process, a gateway's where it is one, go to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(gateway))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
