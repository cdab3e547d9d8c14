"""The model graph and the torch modules of its components."""
