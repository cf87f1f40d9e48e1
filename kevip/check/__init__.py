"""What would keep kevip from working here: what the start refuses, and what ``kevip check`` finds out besides."""
