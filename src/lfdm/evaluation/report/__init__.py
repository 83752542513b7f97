"""results.json as files and tables: report.html, a contact sheet, sample GIFs, and the tables that the command line prints."""

__all__ = ["tables"]
