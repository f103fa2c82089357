"""An unmasker elsewhere, over HTTP."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from fleet.errors import MaskRefusedError, ProtocolError, UnmaskerError
from fleet.protocol.mask_requests import (
    CONTENT_TYPE,
    MOST_ANSWER_BYTES,
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
            with self._http.stream(method, path, content=body, headers=headers) as response:
                answer = self._bounded(response)
        except httpx.HTTPError as error:
            raise UnmaskerError(
                f"the unmasker at {self.url} doesn't answer ({error}); does it run? "
                "`tinyfleet unmasker run`"
            ) from None
        if response.status_code == 200:
            return answer
        if response.status_code == 401:
            raise UnmaskerError(
                f"the unmasker at {self.url} doesn't know the token; `tinyfleet unmasker token` "
                "there makes another one"
            )
        raise self._refusal(response.status_code, answer)

    def _bounded(self, response: httpx.Response) -> bytes:
        """The whole body: it may be another party's, and isn't let fill this machine's memory."""
        found = bytearray()
        for piece in response.iter_bytes():
            found += piece
            if len(found) > MOST_ANSWER_BYTES:
                raise UnmaskerError(
                    f"the unmasker at {self.url} answers with more than {MOST_ANSWER_BYTES} bytes"
                )
        return bytes(found)

    def _refusal(self, status: int, answer: bytes) -> MaskRefusedError | UnmaskerError:
        try:
            return decode_refusal(answer)
        except ProtocolError:
            return UnmaskerError(
                f"the unmasker at {self.url} fails with HTTP status {status}; its log says why"
            )
