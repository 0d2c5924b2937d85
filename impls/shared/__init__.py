"""The modules that two or more of our own losses use."""
