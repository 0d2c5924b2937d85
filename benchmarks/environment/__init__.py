"""What a number depends on other than the loss: machine, threads, allocator, GPU state."""
