"""Whether a service or a gateway does its work, asked beside it: for containers' health checks."""

from __future__ import annotations

import json
import ssl
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from fleet.coordinator.settings import ApiSettings, CoordinatorSettings
from fleet.coordinator.superlink import supernode_of
from fleet.errors import ConfigurationError, GatewayError
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import GatewaySettings

SECONDS = 15.0
"""Within those that an image's HEALTHCHECK gives it, with what starting Python takes."""


def problems(path: Path) -> list[str]:
    """What keeps the service or the gateway with this configuration from its work."""
    try:
        is_gateway = "gateway" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: can't be read ({error})") from None
    if is_gateway:
        return _of_gateway(GatewaySettings.read(path))
    return _of_service(CoordinatorSettings.read(path).api)


def _of_gateway(settings: GatewaySettings) -> list[str]:
    try:
        GatewayClient(settings.socket, SECONDS).watch([("0" * 16, 0)], 0.0)
    except GatewayError as error:
        return [str(error)]
    if settings.superlink and not supernode_of(settings).adopt():
        return [f"the SuperNode of gateway {settings.gateway} doesn't run"]
    return []


def _of_service(api: ApiSettings) -> list[str]:
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
        with opener.open(f"{scheme}://{where}/readyz", timeout=SECONDS):
            return []
    except urllib.error.HTTPError as error:
        try:
            return [str(one) for one in json.load(error)["problems"]]
        except (ValueError, KeyError, TypeError):
            return [f"the service answers with {error.code}"]
    except OSError as error:
        return [f"the service doesn't answer at {where} ({error})"]
