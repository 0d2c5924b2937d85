"""Losses on several ranks: those that torchrun started, and a pool of processes of our own."""
