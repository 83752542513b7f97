"""`lfdm batch`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lfdm.cli.console import IncompleteError, Values, progress_bar
from lfdm.cli.options import DEFAULT_MODEL, Dtype, import_torch, pick_device
from lfdm.errors import UserError

VideoFormat = Literal["mp4", "webm", "mov", "gif", "webp", "apng"]


def batch(
    requests: Annotated[Path, Positional, arg(metavar="REQUESTS")],
    *,
    out: str,
    model: str = DEFAULT_MODEL,
    format: VideoFormat = "mp4",  # noqa: A002 - the option's name
    batch_size: int = 8,
    fps: float | None = None,
    scale: int = 1,
    dtype: Dtype = "float32",
    device: str | None = None,
    ray: str | None = None,
    cpus_per_worker: int | None = None,
) -> Values:
    """Make the videos of a table of requests; the same command continues where an earlier run ended.

    The table is CSV, JSON Lines or Parquet. Its columns are image, condition, seed, name, and options of `lfdm generate` in the
    spelling of Python: num_frames, num_inference_steps, guidance_scale, negative_condition, motion_strength, motion_mask, fit,
    loop, full_size, pixel_art. Only image is needed. A request that fails does not stop the others: manifest.jsonl in the folder
    of the results names the file or the error of each. The command then ends with exit code 2, and tries them again next time.

    Args:
        requests: Table; images are relative to its folder.
        out: Folder, or URL such as s3://bucket/folder.
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        format: Format of the videos. All but mp4 keep the alpha of images.
        batch_size: Most videos of equal settings that are made at once.
        fps: Frames per second; by default the model's.
        scale: Whole factor by which the videos are enlarged.
        dtype: Number format of the networks.
        device: cpu, cuda, cuda:1, ...; by default the GPU if there is one.
        ray: Make the videos on a Ray cluster: auto (the one that runs on this machine) or HOST:PORT.
        cpus_per_worker: Cores of each worker on a cluster without GPUs; 1 by default.
    """
    from lfdm.distributed.requests import read_requests

    rows = read_requests(requests)
    import_torch()
    from lfdm.distributed.job import run_batch, run_here
    from lfdm.distributed.ray_cluster import run_on_ray
    from lfdm.distributed.worker import BatchSettings

    if ray is None and cpus_per_worker is not None:
        raise UserError(f"--cpus-per-worker has no effect without --ray; got {cpus_per_worker}")
    if ray is not None and device is not None:
        raise UserError(f"--device has no effect with --ray; got {device!r}")
    base, video = str(requests.parent.resolve()), {"file_format": format, "fps": fps, "scale": scale}
    settings = BatchSettings(model=model, out=out, base=base, batch_size=batch_size, dtype=dtype, **video)
    runner = run_here(pick_device(device)) if ray is None else run_on_ray(ray, 1 if cpus_per_worker is None else cpus_per_worker)
    with progress_bar() as update:
        summary = run_batch(rows, settings, runner, parquet=requests.suffix.lower() == ".parquet", progress=update)
    again = f" ({summary.earlier} of an earlier run)" if summary.earlier else ""
    print(f"{out}: {summary.videos} of {len(rows)} videos{again}")
    counts = {"videos": summary.videos, "earlier": summary.earlier, "failed": summary.failed}
    values = {"out": out, "manifest": f"{out}/manifest.jsonl", "requests": len(rows), **counts}
    if summary.failed:
        message = f"{summary.failed} of {len(rows)} requests failed; {out}/manifest.jsonl says why, the same command tries again"
        raise IncompleteError(message, values)
    return values
