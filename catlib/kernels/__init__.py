"""Compiled helpers; the readable form of each stands where it is used."""
