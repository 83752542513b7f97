"""Folders on disk: files and folders that appear whole or not at all, model folders, run folders, and where models are found."""

__all__ = [
    "arrays",
    "components",
    "disk",
    "file_kinds",
    "files",
    "lock",
    "model_folder",
    "remote",
    "run_folder",
    "sources",
    "texts",
]
