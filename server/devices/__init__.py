"""What devices call: check-in, plan, model, enrollment."""
