"""Many devices: replicas, shards and partition rules, and the plan of a step on hardware that is not here."""
