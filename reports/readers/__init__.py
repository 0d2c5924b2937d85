"""Readers of result files. Each returns tidy rows: a row has a single number."""
