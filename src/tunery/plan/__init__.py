"""What training will take, before it is begun: memory by part, seconds, cost; for every method and sharding, here or on named hardware."""
