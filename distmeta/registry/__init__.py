"""MLflow: runs mirrored, models published, looked up and used."""
