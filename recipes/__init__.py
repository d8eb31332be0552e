"""Recipes are data: one TOML per checkpoint and target."""
