"""The outside world as encryption sees it, one neighbour a file. Only workers and commands use these."""
