"""Many devices: replicas, shards and partition rules, and plans of a step for hardware that is not here."""
