"""Text on its way in and out: tokenizer, chat template, detokenizer, stop strings."""
