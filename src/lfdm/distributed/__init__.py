"""Many videos: tables of requests, in this process or on the machines of a Ray cluster."""

__all__ = ["job", "ray_cluster", "replica_settings", "requests", "results", "serving", "worker"]
