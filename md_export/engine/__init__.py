"""Builds of one or more exports of a checkpoint as planned steps, cached by content, each in a separate process."""
