"""What bounds and hides one device's influence: clipping, noise, accounting."""
