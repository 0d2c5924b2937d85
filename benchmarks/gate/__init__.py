"""Runs the gate of ``tests`` in parallel processes, and keeps what each test said."""
