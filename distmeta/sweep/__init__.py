"""Search over configs: Ray Tune places trials, each a distributed run."""
