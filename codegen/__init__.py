"""The training compiler: ONNX model and update plans to firmware. It knows nothing of fleets."""
