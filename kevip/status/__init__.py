"""What a daemon says of itself, what is on its host, and what both come to: as a file, text, JSON, log and metrics."""
