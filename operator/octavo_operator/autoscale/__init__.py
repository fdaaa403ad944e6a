"""How many replicas there should be: what is observed, and what is decided from it. Pure: see `decide`."""
