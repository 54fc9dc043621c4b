"""What holders open of a round: checks, verdicts, sums."""
