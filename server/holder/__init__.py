"""The share holder: one independent process of a committee that opens sums only."""
