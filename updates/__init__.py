"""What a device sends: model files and vectors, maps, codes, error feedback."""
