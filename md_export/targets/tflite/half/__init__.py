"""What float16 arithmetic may do to a .tflite graph, bounded from measured activations."""
