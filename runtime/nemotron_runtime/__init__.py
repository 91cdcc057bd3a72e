"""The torch-free runtime: bundles, sessions, KV cache, sampling, tokenizer, generation."""
