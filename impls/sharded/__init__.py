"""Linear losses of a vocabulary split across ranks: ``linear_cross_entropy(..., group=group)``."""
