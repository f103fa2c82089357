"""ONNX files → float graphs."""
