"""How the weights of the built-in world were made; nothing outside `portraits.check` and the tests imports it."""
