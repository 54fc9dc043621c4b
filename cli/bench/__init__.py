"""`fedagg bench`: how fast this machine aggregates, beside other libraries doing the same."""
