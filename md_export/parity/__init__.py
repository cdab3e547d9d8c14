"""Golden cases, metrics and verdicts: does an artifact compute what the checkpoint computes?"""
