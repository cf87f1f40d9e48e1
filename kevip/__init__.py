"""Kevip: one virtual IP in front of many machines, by CARP and iptables."""
