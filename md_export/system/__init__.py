"""System services: files, processes, memory, text for a terminal."""
