"""Lint: one description of an operation, one format of rules in ``<target>/engine_rules.toml``, one engine."""
