"""A device's compressor, and the error that it carries over to its next update."""
