"""What a host that serves a VIP has: rules, the address, and what neighbours are told of it."""
