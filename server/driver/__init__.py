"""What moves a round on: leadership, cohort, aggregation."""
