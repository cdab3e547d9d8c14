"""Build exports of a checkpoint as planned steps, each cached by content and run in a separate process."""
