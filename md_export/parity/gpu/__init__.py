"""TFLite artifacts on LiteRT's GPU engine."""
