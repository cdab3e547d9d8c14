"""Lower MobileDiffusion checkpoints to Core ML, TFLite and ONNX, and prove each artifact against golden outputs."""

__version__ = "0.1.0"
