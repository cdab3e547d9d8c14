"""Check that everything an export needs is here, and that each target works: :func:`~.examine.examine`."""
