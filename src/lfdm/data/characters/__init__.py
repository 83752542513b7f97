"""Labelled clips rendered from rigged, animated characters (glTF), whose flow and visibility are known exactly.

Space is glTF's: metres, y up, characters face +z. Quaternions are (x, y, z, w); matrices multiply column vectors.
"""

__all__ = ["data_set"]
