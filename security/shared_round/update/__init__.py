"""A device's update as sealed shares."""
