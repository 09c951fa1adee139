"""Scenes of things in places, with several captions each."""
