"""Reads result files and says what they mean. Needs no torch."""
