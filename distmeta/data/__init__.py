"""Images to shards to episodes."""
