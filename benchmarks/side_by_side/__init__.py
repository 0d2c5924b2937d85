"""Measures all losses in turn, now, on this machine."""
