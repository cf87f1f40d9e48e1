"""The connections of a group, which a master that leaves offers, and its heir pulls: also silent ones live on."""
