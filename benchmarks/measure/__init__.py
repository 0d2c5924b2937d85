"""What one training step costs and whether it is right: the step, its oracle, its meters."""
