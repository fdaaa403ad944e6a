"""Pure and tiny, importable by every part: the memory formula, model shapes, metric and label names."""
