"""Shared mode on a device: the update is cut into shares, sealed and delivered."""
