"""Core ML: ``lower`` → ``quantize`` → ``save``, and ``load`` to execute the package without a Mac."""
