"""Labelled images: where they come from, how they are split, packed, augmented and fed."""
