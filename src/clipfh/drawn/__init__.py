"""Data that needs no download: garments, captioned scenes and faces, drawn by seed.

Reading does not belong here: what is drawn lies in a raw dataset's layout, and its reader reads it.
"""
