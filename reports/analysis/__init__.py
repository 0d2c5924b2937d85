"""What the numbers say: intervals, verdicts, change points, calibration, the pick."""
