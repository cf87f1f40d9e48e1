"""What changes or is read on this machine. Knows no Config: each function gets only the values that it needs."""
