"""Calibrated rounding: choose weights that a target's round-to-nearest stores with less error at the outputs.

It is done in torch before lowering, so it works for every target: an adjusted weight is exactly on the grid, or has
exactly the palette, that the target will find again.
"""
