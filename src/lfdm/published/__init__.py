"""Convert the released checkpoints of LFDM and MRAA, key by key, to model folders of this package."""

__all__ = ["importing", "weights"]
