"""The admin's HTTP interface."""
