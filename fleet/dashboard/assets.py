"""The style sheet, the script and the icon: ours, and served by us."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response

from fleet.dashboard.session import ROOT

_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Assets:
    """All of them, under addresses that change when one of them does."""

    def __init__(self) -> None:
        """Read them; they don't change while the service runs."""
        folder = files("fleet.dashboard") / "assets"
        names = sorted(one.name for one in folder.iterdir() if _kind(one.name))
        self._contents = {name: (folder / name).read_bytes() for name in names}
        digest = hashlib.sha256()
        for name, content in self._contents.items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        self.digest = digest.hexdigest()[:12]
        self.styles = [self.url(name) for name in names if name.endswith(".css")]

    def url(self, name: str) -> str:
        """Where one of them is."""
        return f"{ROOT}/assets/{self.digest}/{name}"

    async def serve(self, request: Request) -> Response:
        """One of them; browsers keep it for a year, since its address never has another."""
        name = request.path_params["name"]
        if request.path_params["digest"] != self.digest or name not in self._contents:
            return Response("there is no such file in this version\n", 404)
        return Response(
            self._contents[name],
            media_type=_kind(name),
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )


def _kind(name: str) -> str:
    return _KINDS.get(PurePath(name).suffix, "")
