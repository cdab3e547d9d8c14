"""Explain an export: lint, attribution, comparison with an older export, estimates, the state of the machine."""
