"""The speed of the aggregation rules: beside other libraries, and commit after commit."""
