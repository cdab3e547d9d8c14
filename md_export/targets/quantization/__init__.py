"""Weights chosen for what they do: values that a target's round-to-nearest stores with less error at the outputs.

All of it happens in torch before lowering, so every target profits and none needs to know: a weight that comes out of
here lies on the very grid, or holds the very palette, that the target will find again.
"""
