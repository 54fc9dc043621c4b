"""The noise that a device adds itself."""
