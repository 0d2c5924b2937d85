"""Log-probabilities of the targets, from hidden states and the classifier's weight."""
