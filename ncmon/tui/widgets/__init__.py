"""Widgets on the Line API: each draws its own rows and redraws only those that changed."""
