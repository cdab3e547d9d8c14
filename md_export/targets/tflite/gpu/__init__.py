"""LiteRT's GPU engine, the one that runs on phones, executed here on a Vulkan driver in software."""
