"""How fast the service is and what it takes, as people start it."""
