"""What the frozen layers make of every sample: computed once, since it never changes."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy.samples import Codes, Labels, Samples
from codegen.graph.ir import Graph
from codegen.plan_search import samples as search
from codegen.plan_search.training import Features, cut_for
from codegen.program import blob
from codegen.program.plans import Plan
from codegen.program.subgraph import cut_graph

CACHE = Path(tempfile.gettempdir()) / "tinyfleet-frozen-features"


def trained_tail(graph: Graph, plan: Plan, samples: Samples) -> tuple[Graph, Samples]:
    """The part of ``graph`` that ``plan`` trains, and the samples as they arrive there.

    Training the one on the other gives the bits of training the whole graph. Features are kept
    on disk, by the content of what makes them.
    """
    cut = cut_for(graph, plan)
    if cut == graph.input:
        return graph, samples
    return cut_graph(graph, cut), replace(
        samples,
        train=_features(graph, cut, samples.train, samples.train_labels),
        test=_features(graph, cut, samples.test, samples.test_labels),
    )


def _features(graph: Graph, cut: str, codes: Codes, labels: Labels) -> Codes:
    """int8 codes (N, H, W, C) of tensor ``cut`` for each of ``codes``, on device arithmetic."""
    digest = hashlib.sha256(f"{cut} {codes.shape}".encode())
    digest.update(np.ascontiguousarray(codes).tobytes())
    behind = {op.name for op in cut_graph(graph, cut).ops}
    for tensor in blob.parameters(graph):
        if tensor.layer not in behind:
            digest.update(np.ascontiguousarray(tensor.values).tobytes())
    path = CACHE / f"{digest.hexdigest()[:32]}.npy"
    if path.exists():
        kept: Codes = np.load(path)
        return kept
    features = Features(graph, search.Samples(codes, labels), [cut], lambda stage, done, of: None)
    made = features.at(cut).codes
    CACHE.mkdir(exist_ok=True)
    np.save(path, made)
    return made
