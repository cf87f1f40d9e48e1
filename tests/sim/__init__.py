"""Daemons of several hosts in one process and in virtual time, over models of all that they touch."""
