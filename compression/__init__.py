"""What crosses the wire: the encoding of model updates."""
