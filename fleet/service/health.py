"""Whether a service, a gateway or an unmasker works, asked beside it: for containers' checks."""

from __future__ import annotations

import json
import ssl
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from fleet.coordinator.settings import CoordinatorSettings
from fleet.coordinator.superlink import supernode_of
from fleet.errors import ConfigurationError, GatewayError
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import GatewaySettings
from fleet.security.listening import ListenSettings
from fleet.unmasker.folder import SETTINGS as UNMASKER_SETTINGS
from fleet.unmasker.folder import UnmaskerSettings

SECONDS = 15.0
"""Within those that an image's HEALTHCHECK gives it, with what starting Python takes."""


def problems(path: Path) -> list[str]:
    """What keeps the service, gateway or unmasker with this configuration from its work."""
    if path.name == UNMASKER_SETTINGS:
        return _of_service(UnmaskerSettings.read(path.parent).listen, "/healthz")
    try:
        is_gateway = "gateway" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: can't be read ({error})") from None
    if is_gateway:
        return _of_gateway(GatewaySettings.read(path))
    return _of_service(CoordinatorSettings.read(path).api, "/readyz")


def _of_gateway(settings: GatewaySettings) -> list[str]:
    try:
        GatewayClient(settings.socket, SECONDS).watch([("0" * 16, 0)], 0.0)
    except GatewayError as error:
        return [str(error)]
    if settings.superlink and not supernode_of(settings).adopt():
        return [f"the SuperNode of gateway {settings.gateway} doesn't run"]
    return []


def _of_service(api: ListenSettings, page: str) -> list[str]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(api.host, api.host)
    where = f"[{host}]:{api.port}" if ":" in host else f"{host}:{api.port}"
    scheme, trust = "http", None
    if api.certificate is not None:
        # Its own certificate, whoever has signed it and whatever names it has.
        scheme, trust = "https", ssl.create_default_context(cafile=api.certificate)
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        trust.check_hostname = False
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if trust is not None:
        handlers.append(urllib.request.HTTPSHandler(context=trust))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(f"{scheme}://{where}{page}", timeout=SECONDS):
            return []
    except urllib.error.HTTPError as error:
        try:
            return [str(one) for one in json.load(error)["problems"]]
        except (ValueError, KeyError, TypeError):
            return [f"the service answers with {error.code}"]
    except OSError as error:
        return [f"the service doesn't answer at {where} ({error})"]
