"""What a holder signs, and what it judges before it does."""
