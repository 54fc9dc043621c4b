"""Model versions: what devices fetch, and the rounds that versions can be built again from."""
