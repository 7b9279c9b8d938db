"""From a config or a run folder to objects, and from a run that has ended to its report and its place in the registry."""
