"""What ``kevip check`` finds out before kevip runs: the checks, one module for each thing that they look at."""
