"""From a model that was trained elsewhere to a version of a bundle's weights."""

from __future__ import annotations

from pathlib import Path

from codegen.export.onnx_file import is_export, values_of_export
from codegen.export.quantized_file import values_of_quantized
from codegen.export.version_blob import blob_of_values
from codegen.firmware.bundle import Bundle
from codegen.firmware.graph_file import load_graph
from codegen.importer.model import load_file


def import_weights(bundle: Bundle, onnx_path: Path) -> bytes:
    """The weights blob of the version of ``bundle`` that an ONNX file has.

    The file is what `export_onnx` wrote, with other values of its tensors, or an int8 QDQ model
    of the same network with the same scales. Raises VersionError for a change of tensors that
    devices keep frozen, with their names, and for another network; ModelError for a file that can't
    be read.
    """
    graph, weights = load_graph(bundle)
    model = load_file(onnx_path)
    of = str(onnx_path)
    read = values_of_export if is_export(model) else values_of_quantized
    return blob_of_values(graph, weights, read(model, graph, of), of)
