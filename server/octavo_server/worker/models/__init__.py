"""One decoder, shaped by its config, for Llama, Qwen2, Qwen3 and Mistral."""
