"""A published model in use: adapt it, predict, evaluate. Imports neither Ray nor MLflow."""
