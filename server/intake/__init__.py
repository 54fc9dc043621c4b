"""Updates as they come in: admission, uploads, the bytes' way to the disk."""
