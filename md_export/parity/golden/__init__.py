"""Golden cases: what torch computes for a prompt and a seed, made, read and handed to artifacts."""
