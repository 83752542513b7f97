"""The web app: a page and an API that generate videos, for a laptop or a lab's network. Needs the extra `[web]`."""

__all__ = ["limits", "server"]
