"""What each implementation would need at any size, found on tensors without elements."""
