"""How small and how fast encoded updates are."""
