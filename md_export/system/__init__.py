"""What every program needs: files, processes, memory, text for a terminal."""
