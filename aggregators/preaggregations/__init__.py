"""What may be done to the rows of a round before an aggregation rule sees them."""
