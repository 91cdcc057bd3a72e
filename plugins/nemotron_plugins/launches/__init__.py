"""Launch rules: how each kernel is compiled and launched. Needs no Triton."""
