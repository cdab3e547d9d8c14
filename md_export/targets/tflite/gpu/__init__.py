"""LiteRT's GPU engine for phones, executed here on a software Vulkan driver."""
