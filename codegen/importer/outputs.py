"""Which of a file's outputs is what the network computes, and which nodes lead to it.

Exporters of classifiers like to add what a user reads: the largest class (ArgMax), its name
(ArrayFeatureExtractor of ai.onnx.ml), a dictionary of probabilities (ZipMap), the probability of
"no" beside that of "yes". A device needs the scores that these are made of. What leads to no other
place than outputs that weren't chosen is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.errors import ModelError
from codegen.importer.handlers import HANDLERS
from codegen.importer.nodes import Node

_DECISIONS = {
    "ArgMax",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Not",
    "Round",
    "TopK",
    "Where",
    "ai.onnx.ml.ArrayFeatureExtractor",
    "ai.onnx.ml.Binarizer",
    "ai.onnx.ml.LabelEncoder",
    "ai.onnx.ml.Normalizer",
    "ai.onnx.ml.ZipMap",
}
"""They tell of scores what a user wants to know."""
_NAMES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
"""Attributes with the names of classes."""
_TABLES = ("ai.onnx.ml.ArrayFeatureExtractor", "Gather")
"""They look a name up in their first input, where that is a constant."""
_PICKS = ("Gather", "ReduceMax", "Slice", "Split")
"""Of probabilities, the one that a user wants to know."""
_LABELLING = tuple(f"ai.onnx.ml.{kind}Classifier" for kind in ("Linear", "SVM", "TreeEnsemble"))
"""Their first output is the label, the second are its scores."""
_RENAMES = {name for name, handler in HANDLERS.items() if handler.renames} - {
    "Gather",
    "Shape",
    "Size",
}
"""Scores stay what they are; Gather may leave some out, and a Shape is none."""
_ENDS = ("Softmax", "LogSoftmax", "Sigmoid")


@dataclass(frozen=True)
class Choice:
    """The ONNX tensor that is the network's output, the nodes that lead to it, and a word on why.

    ``sigmoid`` is the output of a Sigmoid that nothing but renaming follows, or ''. ``largest`` is
    the file's output that tells which score is the largest, or ''. ``names`` are those of the
    classes in the file, in their order, where it has any.
    """

    tensor: str
    nodes: tuple[Node, ...]
    because: str = ""
    sigmoid: str = ""
    largest: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Traced:
    """Where an output comes from.

    ``scores`` are what decisions were taken of, or the output itself; ``origin`` what is left
    without renames and the end. ``decided`` says that there were decisions, ``largest`` that one
    took the largest; ``names`` are those that one gives to classes.
    """

    scores: str
    origin: str
    decided: bool
    largest: bool
    ends: bool
    names: tuple[str, ...]


def choose_output(
    nodes: Sequence[Node],
    outputs: Sequence[str],
    wanted: str | None,
    constants: Mapping[str, NDArray[Any]],
) -> Choice:
    """The output among ``outputs`` that the others are made of, or that of ``wanted``.

    Raises ModelError where several networks end, with what may be asked for.
    """
    trace = _Trace(nodes, constants)
    if wanted is not None:
        if wanted not in outputs and wanted not in trace.makers:
            raise ModelError(
                f"the model has no output '{wanted}'; --output takes {_named(outputs)}, or another "
                "tensor of the file"
            )
        found = trace.traced(wanted)
        same = [one for one in map(trace.traced, outputs) if one.origin == found.origin]
        choice = trace.choice(found.scores, "--output says so")
        return replace(choice, names=_names([found, *same]))
    if not outputs:
        raise ModelError("the model has no output; export it again")
    traced = {name: trace.traced(name) for name in outputs}
    if len({one.origin for one in traced.values()}) > 1:
        raise ModelError(
            f"the model has {len(outputs)} outputs, none of which the others are made of; choose "
            f"the one to train: --output {' or --output '.join(traced)}"
        )
    # Of logits and their probabilities, these tell the loss as well.
    best = min(traced, key=lambda name: (traced[name].decided, not traced[name].ends))
    chosen = traced[best].scores
    others = [name for name in outputs if name != chosen]
    because = f"{_named(others)} {_made(others)} of it" if others else ""
    largest = next((name for name in outputs if traced[name].largest), "")
    names = _names(traced.values())
    return replace(trace.choice(chosen, because), largest=largest, names=names)


def _names(traced: Iterable[_Traced]) -> tuple[str, ...]:
    return next((one.names for one in traced if one.names), ())


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _made(names: Sequence[str]) -> str:
    return "is made" if len(names) == 1 else "are made"


class _Trace:
    """Nodes by what they make."""

    def __init__(self, nodes: Sequence[Node], constants: Mapping[str, NDArray[Any]]) -> None:
        self.makers = {name: node for node in nodes for name in node.outputs if name}
        self._nodes = nodes
        self._constants = constants

    def traced(self, output: str) -> _Traced:
        """Where ``output`` comes from."""
        at, scores = output, output
        decided = largest = ends = False
        names: tuple[str, ...] = ()
        while (node := self.makers.get(at)) is not None:
            names = names or self._names_of(node)
            source = self._yes_of_both(node)
            if source or node.operator in _DECISIONS or self._picks(node):
                source = source or self._data_of(node)
                scores, decided, ends = source, True, False
                largest = largest or node.operator in ("ArgMax", "TopK")
            elif node.operator in _LABELLING and at == node.outputs[0]:
                scores = source = node.outputs[1]
                decided = largest = True
            elif node.operator in _RENAMES:
                source = self._data_of(node)
            elif node.operator in _ENDS and not ends:
                source, ends = node.input(0), True
            else:
                break
            at = source
        return _Traced(scores, at, decided, largest, ends, names)

    def choice(self, tensor: str, because: str) -> Choice:
        """``tensor`` as the network's output."""
        at = tensor
        while (node := self.makers.get(at)) is not None and node.operator in _RENAMES:
            at = self._data_of(node)
        sigmoid = at if node is not None and node.operator == "Sigmoid" else ""
        needed = {tensor}
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.outputs):
                needed.update(name for name in node.reads if name)
                kept.append(node)
        return Choice(tensor, tuple(reversed(kept)), because, sigmoid)

    def _names_of(self, node: Node) -> tuple[str, ...]:
        """What ``node`` calls the classes."""
        given = next((node.attributes[key] for key in _NAMES if key in node.attributes), None)
        if given is None and node.operator in _TABLES:
            given = self._constants.get(node.input(0))
        if given is None:
            return ()
        entries = np.asarray(given).reshape(-1).tolist()
        return tuple(
            n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in entries
        )

    def _data_of(self, node: Node) -> str:
        """The first input that isn't a constant."""
        return next((name for name in node.inputs if name and not self._is_fixed(name)), "")

    def _picks(self, node: Node) -> bool:
        """Whether ``node`` picks of probabilities, or looks a decision up in a table of names."""
        if node.operator == "Gather" and self._is_fixed(node.input(0)):
            return True
        maker = self.makers.get(self._data_of(node))
        while maker is not None and maker.operator in _RENAMES:
            maker = self.makers.get(self._data_of(maker))
        probabilities = maker is not None and (
            maker.operator in _ENDS or bool(self._yes_of_both(maker))
        )
        return node.operator in _PICKS and probabilities

    def _is_fixed(self, name: str) -> bool:
        if name in self._constants:
            return True
        node = self.makers.get(name)
        return node is not None and node.operator == "Constant"

    def _yes_of_both(self, node: Node) -> str:
        """p where ``node`` makes [1 - p, p], or ''."""
        if node.operator != "Concat" or len(node.inputs) != 2:
            return ""
        first, second = (self.makers.get(name) for name in node.inputs)
        if first is None or second is None or first.operator != "Sub":
            return ""
        one = self._constants.get(first.input(0))
        is_one = one is not None and one.dtype.kind == "f" and bool(np.all(one == 1.0))
        return node.inputs[1] if is_one and first.input(1) == node.inputs[1] else ""
