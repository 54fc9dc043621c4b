"""A hunt for races in what threads and tasks share. What it does not find may still be there."""
