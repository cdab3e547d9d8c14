"""The data that travels between the stages: recipe, scheme, manifest, tensors, names."""
