"""What a campaign's file may have, from its JSON Schema, for whoever writes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """A field: what it takes, what it is if nothing is said, what it means."""

    name: str
    kind: str
    default: str
    text: str


@dataclass(frozen=True)
class Part:
    """The campaign, or something that a field of it holds."""

    name: str
    text: str
    fields: tuple[Field, ...]


def parts_of(schema: Mapping[str, Any]) -> list[Part]:
    """The campaign itself first, then its parts."""
    names = {name: _name(name, one) for name, one in schema.get("$defs", {}).items()}
    for field, one in schema.get("properties", {}).items():
        if "$ref" in one:
            names[_of(one["$ref"])] = field
    parts = [_part(names[name], one, names) for name, one in schema.get("$defs", {}).items()]
    return [_part("campaign", schema, names), *sorted(parts, key=lambda one: one.name)]


def _of(reference: str) -> str:
    return reference.rpartition("/")[2]


def _name(name: str, schema: Mapping[str, Any]) -> str:
    """As a file says it: `gate: score`; else what it is called."""
    for which in ("gate", "rule"):
        const = schema.get("properties", {}).get(which, {}).get("const")
        if const is not None:
            return f"{which}: {const}"
    return name.lower()


def _part(name: str, schema: Mapping[str, Any], names: Mapping[str, str]) -> Part:
    required = set(schema.get("required", ()))
    fields = tuple(
        Field(
            field, _kind(one, names), "required" if field in required else _default(one), _text(one)
        )
        for field, one in schema.get("properties", {}).items()
    )
    return Part(name, _text(schema).partition("\n\n")[0], fields)


def _text(schema: Mapping[str, Any]) -> str:
    return str(schema.get("description", ""))


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema or schema["default"] is None:
        return ""
    text = json.dumps(schema["default"])
    return text if len(text) <= 40 else "as below"


def _kind(schema: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The type in words, with its limits."""
    if "$ref" in schema:
        return names[_of(schema["$ref"])]
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return " or ".join(
                _kind(one, names) for one in schema[name] if one.get("type") != "null"
            )
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), names)}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"map to {_kind(inner, names)}" if isinstance(inner, Mapping) else "map"
    return str(schema.get("format") or schema.get("type", "anything")) + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to",
        "exclusiveMaximum": "below",
    }
    said = [f"{word} {schema[name]:.7g}" for name, word in words.items() if name in schema]
    return f" {' '.join(said)}" if said else ""
