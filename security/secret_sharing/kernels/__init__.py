"""The loops over words: compiled, plain, and the choice between them."""
