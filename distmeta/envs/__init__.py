"""Environments for reinforcement learning: families of tasks as tensor programs."""

from distmeta.envs.environment import Environment
from distmeta.envs.grid import Grid
from distmeta.envs.navigation import Navigation

ENVIRONMENTS: dict[str, type[Environment]] = {"navigation": Navigation, "grid": Grid}
