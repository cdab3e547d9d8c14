"""Core ML: ``lower`` → ``quantize`` → ``save``, and ``load`` to execute the package where there is no Mac."""
