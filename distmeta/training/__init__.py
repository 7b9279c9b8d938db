"""The outer loop, its reduction, checkpoints, metrics and evaluation. Knows torch.distributed; knows neither Ray nor MLflow."""
