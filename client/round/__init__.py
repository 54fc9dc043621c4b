"""One round on a device: from the assignment to the receipt."""
