"""A version of the weights as an ONNX file, and back."""
