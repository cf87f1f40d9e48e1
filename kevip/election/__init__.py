"""Who holds the VIP: the election, by CARP."""
