"""The rows that rules read: a round's updates, in memory, compressed, on a GPU or on a cluster."""
