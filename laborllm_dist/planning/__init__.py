"""What a run will take of memory and time, without torch."""
