"""The health of TARGET."""
