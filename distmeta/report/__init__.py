"""Figures of a run, from what its folder holds."""
