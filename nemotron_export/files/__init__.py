"""Files and folders of checkpoints and bundles: reading untrusted ones, writing whole ones."""
