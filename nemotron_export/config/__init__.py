"""The model's config: reading, checking, RoPE parameters."""
