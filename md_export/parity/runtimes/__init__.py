"""TFLite artifacts in other runtimes and kernels."""
