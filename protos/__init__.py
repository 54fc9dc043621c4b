"""Wire messages, generated from `fedagg/v1/*.proto`, and the constants that both sides share."""
