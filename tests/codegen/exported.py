"""The files of tests/codegen/models, imported."""

from __future__ import annotations

from pathlib import Path

from codegen.graph.floats import FloatGraph
from codegen.importer.model import import_model

MODELS = Path(__file__).parent / "models"


def exported(name: str, path: Path | None = None) -> FloatGraph:
    """The model of file ``name``, or of ``path`` that was made of it.

    Autoencoders have as many outputs as inputs, which a classifier could have as well.
    """
    return import_model(path or MODELS / name, "mse" if name.startswith("autoencoder") else None)
