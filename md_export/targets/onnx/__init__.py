"""ONNX: standard opset-18 graphs for onnxruntime, float32, float16 or int8 QDQ."""
