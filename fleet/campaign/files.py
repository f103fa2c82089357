"""Campaigns as operators write them: YAML (or JSON, which is YAML), every mistake named at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a campaign's text: in which field, on which line (from 1) it stands.

    Without a field it is about the campaign as a whole, without a line about something that isn't
    there.
    """

    field: str
    line: int | None
    message: str


class CampaignTextError(CampaignError):
    """A text is no campaign; `mistakes` has each."""

    def __init__(self, name: str, what: str, mistakes: Sequence[Mistake]) -> None:
        """`name` says whose text it is, `what` what is wrong with it in one line."""
        self.mistakes = tuple(mistakes)
        lines = [f"{name} {what}"]
        if what.endswith(":"):
            lines += [f"  {one.field or 'as a whole'}: {one.message}" for one in mistakes]
        super().__init__("\n".join(lines))


def read_campaign(path: Path) -> CampaignConfig:
    """The campaign in a file. CampaignError with a line for every mistake in it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CampaignError(f"{path} can't be read ({error.strerror or error})") from None
    if len(data) > MOST_BYTES:
        raise CampaignError(f"{path} has {len(data)} bytes; a campaign has {MOST_BYTES} at most")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CampaignError(f"{path} isn't UTF-8 text") from None
    return read_text(text, str(path))


def read_text(text: str, name: str) -> CampaignConfig:
    """The campaign in a text, called `name` in what is said of it. Raises `CampaignTextError`."""
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it can't be understood"
        mistake = Mistake("", mark.line + 1 if mark else None, what)
        raise CampaignTextError(name, f"is no YAML{where}: {what}", [mistake]) from None
    if not isinstance(content, dict):
        what = "has no fields, such as `name: digits`"
        raise CampaignTextError(name, what, [Mistake("", None, f"it {what}")])
    try:
        return CampaignConfig.model_validate(content)
    except ValidationError as error:
        root = yaml.compose(text, _Loader)
        mistakes = [
            Mistake(
                ".".join(map(str, _named(one["loc"], content))),
                _line_of(root, one["loc"]),
                one["msg"].removeprefix("Value error, "),
            )
            for one in error.errors(include_input=False)
        ]
        raise CampaignTextError(name, "is no campaign:", mistakes) from None


def file_schema() -> dict[str, Any]:
    """The JSON Schema of a campaign's file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **CampaignConfig.model_json_schema(),
    }


def _named(loc: Sequence[int | str], content: Any) -> list[int | str]:
    """Where a mistake is, without the names of alternatives that the text doesn't have."""
    found: list[int | str] = []
    for number, part in enumerate(loc):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if number < len(loc) - 1:
                continue  # such as which gate it is
        found.append(part)
    return found


def _line_of(node: yaml.Node | None, loc: Sequence[int | str]) -> int | None:
    """The line of the deepest part of a mistake's place that stands in the text."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == part), None)
            if found is None:
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
