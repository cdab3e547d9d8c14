"""Golden cases, metrics and verdicts: check that an artifact computes what the checkpoint computes."""
