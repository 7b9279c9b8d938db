"""From a config to objects: what a run learns from, its network, learner and outer update."""
