"""Linear losses of a vocabulary that is split across ranks: ``linear_cross_entropy``."""
