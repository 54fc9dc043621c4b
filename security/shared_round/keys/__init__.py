"""Keys of holders, dealers and devices, and what is signed with them."""
