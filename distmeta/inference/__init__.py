"""A published model in use: adapt it, predict, evaluate. Knows neither Ray nor MLflow."""
