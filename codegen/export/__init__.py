"""A version of the weights as an ONNX file, and back from training elsewhere."""

from codegen.export.onnx_file import export_onnx
from codegen.export.trained_model import import_weights

__all__ = ["export_onnx", "import_weights"]
