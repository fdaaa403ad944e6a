"""The inference server: `frontend` (API process), `engine` (deciding), `worker` (on the device)."""
