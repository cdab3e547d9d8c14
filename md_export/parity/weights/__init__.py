"""The stored-weight audit: every weight in an artifact against the checkpoint."""
