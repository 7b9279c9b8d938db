"""The outer loop, its reduction, checkpoints, metrics and evaluation. Imports torch.distributed, but neither Ray nor MLflow."""
