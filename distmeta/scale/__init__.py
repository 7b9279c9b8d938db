"""Ray: where workers run, how they are told what to do, and what is seen of them."""
