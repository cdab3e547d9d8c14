"""ONNX graphs compiled for Qualcomm's Hexagon NPU, and executed by its simulator on x86."""
