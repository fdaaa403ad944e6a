"""The door of a fleet: one OpenAI-compatible endpoint before all replicas, which outlives any one of them."""
