"""Encoders that make one vector of a sentence."""
