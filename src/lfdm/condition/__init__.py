"""Labels, text and mixes of them as embeddings (b, dim), and the null condition of classifier-free guidance."""

__all__ = ["encoder", "text"]
