"""Many exports of one checkpoint, built in steps: planned, cached by content, each in a process of its own."""
