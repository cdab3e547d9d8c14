"""Self-test of verification: damage copies of an export on purpose; the right check must notice each damage."""
