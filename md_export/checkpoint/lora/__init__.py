"""LoRA files: low-rank changes of linear and convolution weights, fused into the checkpoint's as it is read."""
