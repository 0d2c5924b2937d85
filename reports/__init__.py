"""What the measurements say: result files to tables. Knows nothing of torch."""
