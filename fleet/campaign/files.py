"""Campaigns as operators write them: YAML (or JSON, which is YAML), every mistake named at once."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fleet.campaign.config import CampaignConfig
from fleet.errors import CampaignError

MOST_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the last would count in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key, _ in node.value:
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key has to be a name", key.start_mark
            )
        if name in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{name!r} stands there twice", key.start_mark
            )
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_campaign(path: Path) -> CampaignConfig:
    """The campaign in a file. CampaignError with a line for every mistake in it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CampaignError(f"{path} can't be read ({error.strerror or error})") from None
    if len(data) > MOST_BYTES:
        raise CampaignError(f"{path} has {len(data)} bytes; a campaign has {MOST_BYTES} at most")
    try:
        content = yaml.load(data.decode("utf-8"), _Loader)  # a SafeLoader
    except UnicodeDecodeError:
        raise CampaignError(f"{path} isn't UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it can't be understood"
        raise CampaignError(f"{path} is no YAML{where}: {what}") from None
    if not isinstance(content, dict):
        raise CampaignError(f"{path} has no fields, such as `name: digits`")
    try:
        return CampaignConfig.model_validate(content)
    except ValidationError as error:
        lines = [f"{path} is no campaign:"]
        for one in error.errors(include_input=False):
            where = ".".join(str(part) for part in one["loc"]) or "as a whole"
            lines.append(f"  {where}: {one['msg'].removeprefix('Value error, ')}")
        raise CampaignError("\n".join(lines)) from None
