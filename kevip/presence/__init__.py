"""Presence: each replica tells the others what it is, whatever its role. Nothing of it decides who is master."""
