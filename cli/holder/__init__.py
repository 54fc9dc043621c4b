"""`fedagg share-holder`, and the committees that are made for it."""
