"""Compare two runtimes: on one component as two artifacts, and on single operations in float16."""
