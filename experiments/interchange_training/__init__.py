"""Strict interchange training, in parts: recipe, data, the exchange of writes, the loop, the model card."""
