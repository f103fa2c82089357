"""An unmasker elsewhere, over HTTP."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from fleet.errors import MaskRefusedError, ProtocolError, UnmaskerError
from fleet.protocol.mask_requests import (
    CONTENT_TYPE,
    MaskRequest,
    UnmaskerFacts,
    decode_masks,
    decode_refusal,
)
from fleet.protocol.masking import Words

TIMEOUT_SECONDS = 20.0
"""A driver that is silent for longer is taken for dead."""


class RemoteUnmasker:
    """Speaks to an unmasker's service; an `Unmasker`. Any thread."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``ca``: of the authority that vouches for it, where the system's don't."""
        verify: Any = True if ca is None else ssl.create_default_context(cafile=str(ca))
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_SECONDS,
            verify=verify,
            transport=transport,
            trust_env=False,  # a proxy must not see the token
        )

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close connections."""
        self.close()

    def masks(self, request: MaskRequest) -> Words:
        """See `Unmasker`."""
        body = self._ask("POST", "/v1/masks", request.encode())
        try:
            return decode_masks(body, request)
        except ProtocolError as error:
            raise UnmaskerError(f"the unmasker at {self.url} answers nonsense: {error}") from None

    def facts(self) -> UnmaskerFacts:
        """See `Unmasker`."""
        try:
            return UnmaskerFacts.decode(self._ask("GET", "/v1/key"))
        except ProtocolError as error:
            raise UnmaskerError(f"the unmasker at {self.url} answers nonsense: {error}") from None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": CONTENT_TYPE} if body is not None else {}
        try:
            response = self._http.request(method, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise UnmaskerError(
                f"the unmasker at {self.url} doesn't answer ({error}); does it run? "
                "`tinyfleet unmasker run`"
            ) from None
        if response.status_code == 200:
            return response.content
        if response.status_code == 401:
            raise UnmaskerError(
                f"the unmasker at {self.url} doesn't know the token; `tinyfleet unmasker token` "
                "there makes another one"
            )
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> MaskRefusedError | UnmaskerError:
        try:
            return decode_refusal(response.content)
        except ProtocolError:
            return UnmaskerError(
                f"the unmasker at {self.url} fails with HTTP status {response.status_code}; "
                "its log says why"
            )
