"""What the frozen layers make of every sample: computed once, since it never changes."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy.samples import Codes, Samples
from codegen import blob
from codegen.interpreter import Interpreter
from codegen.ir import Graph
from codegen.lowering import lower
from codegen.plans import Plan
from codegen.subgraph import cut_graph, frozen_cut

CACHE = Path(tempfile.gettempdir()) / "tinyfleet-frozen-features"


def trained_tail(graph: Graph, plan: Plan, samples: Samples) -> tuple[Graph, Samples]:
    """The part of ``graph`` that ``plan`` trains, and the samples as they arrive there.

    Training the one on the other gives the bits of training the whole graph. Features are kept
    on disk, by the content of what makes them.
    """
    cut = frozen_cut(graph, plan)
    if cut == graph.input:
        return graph, samples
    return cut_graph(graph, cut), replace(
        samples,
        train=features(graph, plan, cut, samples.train),
        test=features(graph, plan, cut, samples.test),
    )


def features(graph: Graph, plan: Plan, cut: str, codes: Codes) -> Codes:
    """int8 codes (N, H, W, C) of tensor ``cut`` for each of ``codes``, on device arithmetic."""
    digest = hashlib.sha256(f"{cut} {codes.shape}".encode())
    digest.update(np.ascontiguousarray(codes).tobytes())
    for tensor in blob.layout(graph):
        if tensor.layer not in {op.name for op in cut_graph(graph, cut).ops}:
            digest.update(np.ascontiguousarray(tensor.values).tobytes())
    path = CACHE / f"{digest.hexdigest()[:32]}.npy"
    if path.exists():
        kept: Codes = np.load(path)
        return kept
    interpreter = Interpreter(lower(graph, plan))
    made = []
    for sample in codes:
        interpreter.score(sample, 0)
        made.append(interpreter.arrays[f"activation {cut}"].astype(np.int8))
    CACHE.mkdir(exist_ok=True)
    np.save(path, np.stack(made))
    return np.stack(made)
