"""TFLite: float32, float16-weight or int8 files for LiteRT, lowered by litert_torch."""
