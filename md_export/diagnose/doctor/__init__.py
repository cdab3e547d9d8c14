"""Check the requirements of an export on this machine, and that each target works: :func:`~.examine.examine`."""
