"""Noise schedules and samplers: from noise to the decoder's input."""
