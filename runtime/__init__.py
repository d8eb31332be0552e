"""Artifacts run here: sessions, generation, verification."""
