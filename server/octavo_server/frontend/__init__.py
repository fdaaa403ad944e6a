"""The API process: HTTP, text, and its view of the engine process."""
