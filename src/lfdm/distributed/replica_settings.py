"""Settings of replicas on a cluster. Imports no torch."""

from dataclasses import dataclass

from lfdm.config.checks import check_integer

MAX_REPLICAS = 1000
MAX_REPLICA_BATCH = 64
MAX_CPUS = 1024


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How many replicas hold a model on a cluster."""

    min_replicas: int = 1
    """Replicas without any request."""
    max_replicas: int = 4
    """Most replicas; one is added when the others have a full batch in hand and a full batch waits, on average."""
    batch_size: int = 4
    """Most videos of equal settings that a replica makes at once."""
    cpus_per_worker: int = 1
    """Cores of each replica on a cluster without GPUs."""

    def __post_init__(self) -> None:
        check_integer("max_replicas", self.max_replicas, 1, MAX_REPLICAS)
        check_integer("min_replicas", self.min_replicas, 1, self.max_replicas)
        check_integer("batch_size", self.batch_size, 1, MAX_REPLICA_BATCH)
        check_integer("cpus_per_worker", self.cpus_per_worker, 1, MAX_CPUS)
