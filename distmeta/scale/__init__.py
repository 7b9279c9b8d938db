"""Ray: placing workers, controlling them, and showing their progress."""
