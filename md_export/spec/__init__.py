"""Data that the stages exchange: recipe, scheme, manifest, tensors, names."""
