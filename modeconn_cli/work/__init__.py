"""The machinery that carries stages out; it knows none of them."""
