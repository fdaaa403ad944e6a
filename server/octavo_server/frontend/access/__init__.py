"""Who may ask for what: API keys and their files, limits per key, which routes are open at which port, TLS, CORS."""
