"""The calls to the server: messages, streams, retries."""
