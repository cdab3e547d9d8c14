"""Golden cases: torch's results for a prompt and a seed; computing, storing and reading them."""
