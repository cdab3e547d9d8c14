"""ONNX artifacts on the simulator of Qualcomm's Hexagon NPU."""
