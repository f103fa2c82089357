"""The importer's draft of a float graph, on which its passes work."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

from codegen.graph.floats import ChannelsFirst, Coding, FloatOp, inputs_of
from codegen.graph.ir import Variadic

_Op = TypeVar("_Op", bound=FloatOp)


@dataclasses.dataclass
class DraftGraph:
    """Operations by output tensor in execution order, and what is known of their tensors."""

    input: str
    output: str
    ops: dict[str, FloatOp]
    shapes: dict[str, ChannelsFirst]
    codings: dict[str, Coding]

    def readers(self) -> Counter[str]:
        """How many operations read each tensor; the graph's output is read once more."""
        counts = Counter(name for op in self.ops.values() for name in inputs_of(op))
        counts[self.output] += 1
        return counts

    def only_reader(self, tensor: str) -> bool:
        """Whether one operation reads ``tensor`` and nothing else."""
        return self.readers()[tensor] == 1

    def rename(self, old: str, new: str) -> None:
        """Lets every reader of ``old`` read ``new``."""

        def renamed(name: str) -> str:
            return new if name == old else name

        for output, op in self.ops.items():
            if isinstance(op, Variadic):
                inputs = tuple(renamed(name) for name in op.inputs)
                self.ops[output] = dataclasses.replace(op, inputs=inputs)
            else:
                self.ops[output] = dataclasses.replace(op, input=renamed(op.input))
        if self.output == old:
            self.output = new

    def remove(self, op: FloatOp, keep: str) -> None:
        """Takes ``op`` out; its readers read tensor ``keep``."""
        del self.ops[op.output]
        self.codings.pop(op.output, None)
        self.rename(op.output, keep)

    def split(self, *ops: FloatOp) -> None:
        """Operations one behind the other in the place of the one that makes what the last does."""
        before = dict(self.ops)
        self.ops.clear()
        for name, op in before.items():
            if name == ops[-1].output:
                self.ops.update((part.output, part) for part in ops)
            else:
                self.ops[name] = op

    def each(self, kind: type[_Op]) -> Iterator[_Op]:
        """The operations of one kind as they stood at the start, less those removed since."""
        for output in [name for name, op in self.ops.items() if isinstance(op, kind)]:
            op = self.ops.get(output)
            if isinstance(op, kind):
                yield op


def remove_unused(draft: DraftGraph) -> None:
    """Operations that the output doesn't depend on, as auxiliary branches leave behind."""
    needed = {draft.output}
    for output, op in reversed(draft.ops.items()):
        if output in needed:
            needed.update(inputs_of(op))
    for output in [name for name in draft.ops if name not in needed]:
        del draft.ops[output]
