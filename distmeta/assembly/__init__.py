"""Builds objects from a config or a run folder, and a report and a registered model from a finished run."""
