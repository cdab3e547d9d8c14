"""Errors of float16 arithmetic in a .tflite graph, bounded from measured activations."""
