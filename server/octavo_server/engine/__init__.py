"""The engine process, deciding: plain integers, no torch (but for `core`, which holds the runner)."""
