"""What our own losses share."""
