"""Programs: thin wiring, the only readers of configuration and environment."""
