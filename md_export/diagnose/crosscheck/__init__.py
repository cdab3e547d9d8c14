"""Two runtimes beside each other: the same component as two artifacts, and single operations in float16."""
