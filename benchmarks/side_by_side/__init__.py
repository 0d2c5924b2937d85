"""All implementations in turn, now, on this machine."""
