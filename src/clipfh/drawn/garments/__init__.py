"""Garments as a shop would show them: what they are, how they look, what is said of them."""
