"""Measures everything on a GPU machine, stage by stage, unattended."""
