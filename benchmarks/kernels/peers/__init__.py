"""What each other library computes, one module a library."""
