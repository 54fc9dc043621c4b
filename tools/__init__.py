"""Scripts for people who change the project; nothing here is installed."""
