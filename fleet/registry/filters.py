"""Which devices: a condition in CEL over the fields of a device.

The Common Expression Language (cel.dev) as far as every database can evaluate it, so that a hundred
thousand devices are filtered where they are stored: comparisons, `in`, `startsWith`, `endsWith`,
`contains`, `has`, `!`, `&&`, `||`. What is beyond that is refused by name when it is read.

A field that nobody knows of a device makes a comparison neither true nor false, as an error does in
CEL: `!` leaves it so, `&&` and `||` decide by the other side where that is enough. Devices match
where the condition is true.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from celpy.celparser import CELParseError, CELParser
from celpy.evaluation import celstr
from lark import Token, Tree

from fleet.errors import RegistryError

Kind = Literal["text", "number", "truth"]

FIELDS: Mapping[str, Kind] = {
    "device": "text",
    "site": "text",
    "gateway": "text",
    "board": "text",
    "bundle": "text",
    "current": "text",
    "candidate": "text",
    "reset_cause": "text",
    "retired": "truth",
    "online": "truth",
    "charging": "truth",
    "lease": "number",
    "free_sram_bytes": "number",
    "battery_percent": "number",
    "fault_code": "number",
    "link_bits_per_second": "number",
    "train_samples": "number",
    "held_out_samples": "number",
    "seen_age_seconds": "number",
}
"""What a condition can be about, besides `labels`, which are text."""

MOST_CHARACTERS = 2000
MOST_DEPTH = 50

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_RELATIONS = {
    "relation_eq": "==",
    "relation_ne": "!=",
    "relation_lt": "<",
    "relation_le": "<=",
    "relation_gt": ">",
    "relation_ge": ">=",
}
_TURNED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_TEXT_TESTS: Mapping[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": operator.contains,
}


@dataclass(frozen=True)
class Value:
    """A field of a device, or with a `label` the label of that name."""

    name: str
    kind: Kind
    label: str = ""

    def of(self, values: Mapping[str, Any]) -> Any:
        """What a device has there; None where nobody knows."""
        if self.label:
            return values.get("labels", {}).get(self.label)
        return values.get(self.name)

    def __str__(self) -> str:
        """As CEL."""
        return f"labels[{_quoted(self.label)}]" if self.label else self.name


class Condition(ABC):
    """A condition; `decide` gives None where it is neither true nor false."""

    @abstractmethod
    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """Whether it holds for a device with these fields (`Device.values`)."""


@dataclass(frozen=True)
class Compare(Condition):
    """A value beside a constant."""

    value: Value
    comparison: str
    constant: str | float | bool

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        known = self.value.of(values)
        return None if known is None else _COMPARISONS[self.comparison](known, self.constant)

    def __str__(self) -> str:
        """As CEL."""
        return f"{self.value} {self.comparison} {_quoted(self.constant)}"


@dataclass(frozen=True)
class OneOf(Condition):
    """A value that is in a list of constants."""

    value: Value
    constants: tuple[str | float | bool, ...]

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        known = self.value.of(values)
        return None if known is None else known in self.constants

    def __str__(self) -> str:
        """As CEL."""
        return f"{self.value} in [{', '.join(map(_quoted, self.constants))}]"


@dataclass(frozen=True)
class TextTest(Condition):
    """Text that begins with, ends with or contains other text."""

    value: Value
    test: str
    text: str

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        known = self.value.of(values)
        return None if known is None else _TEXT_TESTS[self.test](known, self.text)

    def __str__(self) -> str:
        """As CEL."""
        return f"{self.value}.{self.test}({_quoted(self.text)})"


@dataclass(frozen=True)
class Known(Condition):
    """Whether a value is known at all; never undecided."""

    value: Value

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        return self.value.of(values) is not None

    def __str__(self) -> str:
        """As CEL."""
        label = self.value.label
        return f"{_quoted(label)} in labels" if label else f"has({self.value})"


@dataclass(frozen=True)
class Constant(Condition):
    """`true` or `false`."""

    is_true: bool

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        return self.is_true

    def __str__(self) -> str:
        """As CEL."""
        return _quoted(self.is_true)


@dataclass(frozen=True)
class Not(Condition):
    """The opposite."""

    of: Condition

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        decided = self.of.decide(values)
        return None if decided is None else not decided

    def __str__(self) -> str:
        """As CEL."""
        return f"!({self.of})"


@dataclass(frozen=True)
class All(Condition):
    """Both or all of several."""

    parts: tuple[Condition, ...]

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        decided = [part.decide(values) for part in self.parts]
        return False if False in decided else None if None in decided else True

    def __str__(self) -> str:
        """As CEL."""
        return " && ".join(f"({one})" if isinstance(one, AnyOf) else str(one) for one in self.parts)


@dataclass(frozen=True)
class AnyOf(Condition):
    """At least one of several."""

    parts: tuple[Condition, ...]

    def decide(self, values: Mapping[str, Any]) -> bool | None:
        """See `Condition`."""
        decided = [part.decide(values) for part in self.parts]
        return True if True in decided else None if None in decided else False

    def __str__(self) -> str:
        """As CEL."""
        return " || ".join(map(str, self.parts))


@dataclass(frozen=True)
class Filter:
    """A condition that an operator has written."""

    text: str
    condition: Condition

    @classmethod
    def parse(cls, text: str) -> Filter:
        """The filter in a CEL text; empty text is every device.

        Raises `RegistryError` that says what is wrong and where, or what isn't offered.
        """
        if not text.strip():
            return cls("", Constant(True))
        if len(text) > MOST_CHARACTERS:
            raise RegistryError(
                f"the filter has {len(text)} characters, at most {MOST_CHARACTERS} are read; "
                "give the devices a label and filter by that"
            )
        try:
            tree = CELParser().parse(text)
        except CELParseError as error:
            raise RegistryError(
                f"the filter is no CEL at line {error.line}, column {error.column}: {text!r}"
            ) from None
        except RecursionError:
            raise RegistryError("the filter is nested too deeply; write it flatter") from None
        return cls(text, _Reader(text).condition(tree))

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true of a device (`Device.values`)."""
        return self.condition.decide(values) is True

    def parts(self) -> tuple[Condition, ...]:
        """What has to be true all at once."""
        return self.condition.parts if isinstance(self.condition, All) else (self.condition,)


def _quoted(constant: str | float | bool) -> str:
    if isinstance(constant, bool):
        return "true" if constant else "false"
    if isinstance(constant, str):
        escaped = constant.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return f"{constant:g}" if isinstance(constant, float) else str(constant)


class _Reader:
    """Reads cel-python's syntax tree."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0

    def condition(self, tree: Tree[Token]) -> Condition:
        node = _inner(tree)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._refused("more than", f"{MOST_DEPTH} nested conditions")
        try:
            return self._condition(node)
        finally:
            self._depth -= 1

    def _condition(self, node: Tree[Token] | Token) -> Condition:
        kind = node.data if isinstance(node, Tree) else node.type
        parts = node.children if isinstance(node, Tree) else []
        match kind:
            case "conditionalor":
                return AnyOf(self._flat(AnyOf, parts))
            case "conditionaland":
                return All(self._flat(All, parts))
            case "unary" if _name(parts[0]) == "unary_not":
                return Not(self.condition(_tree(parts[1])))
            case "relation":
                return self._relation(_tree(parts[0]), _tree(parts[1]))
            case "member_dot_arg":
                return self._method(parts)
            case "ident_arg":
                return self._call(parts)
            case "literal" if _token(parts[0]).type == "BOOL_LIT":
                return Constant(_token(parts[0]).value == "true")
            case "ident" | "member_dot" | "member_index":
                value = self._value(_tree(node))
                if value.kind != "truth":
                    raise self._refused(str(value), "is no condition; compare it with something")
                return Compare(value, "==", True)
            case "expr":
                raise self._refused("a ? b : c", "isn't offered; write (a && b) || (!a && c)")
        raise self._refused_node(node)

    def _flat(self, kind: type[All] | type[AnyOf], parts: list[Any]) -> tuple[Condition, ...]:
        found: list[Condition] = []
        for part in parts:
            one = self.condition(part)
            found += one.parts if isinstance(one, kind) else (one,)
        return tuple(found)

    def _relation(self, left: Tree[Token], right: Tree[Token]) -> Condition:
        # The first child holds the relation and what stands on its left.
        name, first, second = left.data, _inner(left.children[0]), _inner(right)
        if name == "relation_in":
            return self._in(first, second)
        comparison = _RELATIONS[name]
        if _is_constant(first) and not _is_constant(second):
            first, second, comparison = second, first, _TURNED[comparison]
        value = self._value(first)
        if _is_null(second):
            if comparison not in ("==", "!="):
                raise self._refused(comparison, "null makes no sense")
            return Not(Known(value)) if comparison == "==" else Known(value)
        constant = self._constant(second, value)
        if value.kind != "number" and comparison not in ("==", "!="):
            raise self._refused(
                f"{value} {comparison}", f"isn't offered for {value.kind}; use == or !="
            )
        return Compare(value, comparison, constant)

    def _in(self, first: Tree[Token], second: Tree[Token]) -> Condition:
        if _is_constant(first):
            # "x" in labels
            if _name(second) == "ident" and second.children[0] == "labels":
                return Known(Value("labels", "text", self._text_of(first)))
            raise self._refused_node(second)
        value = self._value(first)
        if second.data == "list_lit" and not second.children:
            return OneOf(value, ())
        if second.data not in ("exprlist", "list_lit"):
            if not _is_constant(second):
                raise self._refused(f"{value} in", "wants a list, such as [1, 2]")
            return OneOf(value, (self._constant(second, value),))
        items = _tree(second.children[0]).children if second.data == "list_lit" else second.children
        return OneOf(value, tuple(self._constant(_inner(item), value) for item in items))

    def _method(self, parts: list[Any]) -> Condition:
        value, method = self._value(_inner(parts[0])), _token(parts[1]).value
        if method not in _TEXT_TESTS:
            raise self._refused(
                f".{method}()", f"isn't offered; there are {', '.join(_TEXT_TESTS)}"
            )
        if value.kind != "text":
            raise self._refused(f"{value}.{method}()", f"is for text, {value} is a {value.kind}")
        arguments = _arguments(parts[2:])
        if len(arguments) != 1 or not _is_constant(arguments[0]):
            raise self._refused(f".{method}()", 'wants one text, such as .startsWith("cow-")')
        return TextTest(value, method, self._text_of(arguments[0]))

    def _call(self, parts: list[Any]) -> Condition:
        name, arguments = _token(parts[0]).value, _arguments(parts[1:])
        if name != "has":
            raise self._refused(f"{name}()", "isn't offered; has() is")
        if len(arguments) != 1:
            raise self._refused("has()", "wants one field, such as has(labels.room)")
        return Known(self._value(arguments[0]))

    def _value(self, node: Tree[Token]) -> Value:
        if _name(node) == "ident":
            name = str(node.children[0])
            if name in FIELDS:
                return Value(name, FIELDS[name])
            if name != "labels":
                known = ", ".join([*FIELDS, "labels.NAME"])
                raise self._refused(name, f"is no field of a device; there are {known}")
            raise self._refused("labels", "are compared one by one, such as labels.room")
        if _name(node) in ("member_dot", "member_index"):
            base, key = _inner(node.children[0]), node.children[1]
            if _name(base) == "ident" and base.children[0] == "labels":
                if isinstance(key, Token):
                    return Value("labels", "text", str(key))
                inner = _inner(key)
                if _is_constant(inner):
                    return Value("labels", "text", self._text_of(inner))
        raise self._refused_node(node)

    def _constant(self, node: Tree[Token], value: Value) -> str | float | bool:
        if not _is_constant(node):
            raise self._refused(str(value), "is compared with constants only")
        token = _token(node.children[0])
        if token.type in ("INT_LIT", "UINT_LIT", "FLOAT_LIT"):
            found: str | float | bool = _number(token)
            if isinstance(found, int) and not -(2**63) <= found < 2**63:
                raise self._refused(token.value, "is further from 0 than any field")
            kind: Kind = "number"
        elif token.type == "BOOL_LIT":
            found, kind = token.value == "true", "truth"
        else:
            found, kind = self._text_of(node), "text"
        if kind != value.kind:
            raise self._refused(str(value), f"is a {value.kind}, {token.value} is a {kind}")
        return found

    def _text_of(self, node: Tree[Token]) -> str:
        token = _token(node.children[0])
        if token.type not in ("STRING_LIT", "MLSTRING_LIT"):
            raise self._refused(token.value, "isn't text")
        text = str(celstr(token))
        if not is_storable(text):
            raise self._refused(token.value, "has a character that no database keeps")
        return text

    def _refused_node(self, node: Any) -> RegistryError:
        if _name(node) == "ident_arg":
            return self._refused(f"{node.children[0]}()", "isn't offered; has() is")
        name = _name(node).replace("_", " ")
        return self._refused(
            f"a filter with {name}",
            "isn't offered; compare fields with constants and join that with && || !",
        )

    def _refused(self, what: str, why: str) -> RegistryError:
        return RegistryError(f"{what} {why} (in the filter {self._text!r})")


def is_storable(text: str) -> bool:
    """Whether every database keeps it: no NUL, and no half of a pair of surrogates."""
    return not any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text)


def _name(node: Any) -> str:
    return str(node.data) if isinstance(node, Tree) else str(node.type)


def _tree(node: Any) -> Tree[Token]:
    assert isinstance(node, Tree)
    return node


def _token(node: Any) -> Token:
    assert isinstance(node, Token)
    return node


def _inner(node: Any) -> Tree[Token]:
    """Without the levels of precedence and the parentheses around it."""
    while (
        isinstance(node, Tree)
        and len(node.children) == 1
        and isinstance(node.children[0], Tree)
        and node.data not in ("exprlist", "list_lit")
    ):
        node = node.children[0]
    return _tree(node)


def _arguments(parts: list[Any]) -> list[Tree[Token]]:
    whole = [part.children if _name(part) == "exprlist" else [part] for part in parts]
    return [_inner(one) for some in whole for one in some]


def _is_constant(node: Tree[Token]) -> bool:
    return _name(node) == "literal" and _token(node.children[0]).type != "NULL_LIT"


def _is_null(node: Tree[Token]) -> bool:
    return _name(node) == "literal" and _token(node.children[0]).type == "NULL_LIT"


def _number(token: Token) -> float:
    text = token.value.rstrip("uU")
    if token.type == "FLOAT_LIT":
        return float(text)
    return int(text, 16) if "x" in text.lower() else int(text)
