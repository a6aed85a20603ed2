"""Slow references written from the rules alone; they share no code with the engine but the names in model.py."""
