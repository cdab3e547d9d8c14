"""Model graph and the torch modules of its components."""
