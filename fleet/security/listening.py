"""Where a service listens that takes tokens: over TLS, or on loopback only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Port = Annotated[int, Field(ge=1, le=65535)]


class ListenSettings(BaseModel):
    """With certificate and key over TLS, else on loopback only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Port = 8080
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _is_private_without_tls(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        if self.certificate is None and self.host not in LOOPBACK:
            raise ValueError(
                f"host {self.host} is more than this machine: tokens would cross the network in "
                "the clear. Give certificate and key, or listen on 127.0.0.1 behind a proxy"
            )
        return self

    @property
    def url(self) -> str:
        """Under which it is reached."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"
