"""Measures a range of commits with the asv suites, and keeps their numbers in one CSV."""
