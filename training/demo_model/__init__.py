"""The demo model: its data, tokenizer, training, export and scoring. Start with README.md."""
