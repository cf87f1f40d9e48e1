"""What a host does about its VIPs, decided: pure functions of a state, an event and the time."""
