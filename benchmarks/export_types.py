"""Measure exported models whose weights, or whole networks, have fewer bits.

    python -m benchmarks.export_types exported    # a folder of `lfdm export`: writes benchmarks/results/export-types.json
    python -m benchmarks.export_types --render    # only the table in docs/export.md

Every variant makes the same videos from the same noise on one thread. `dynamic` and `static` are ONNX Runtime's own quantization
to 8 bits: of activations while it runs, and by ranges that are calibrated on videos of other noise.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_dynamic, quantize_static

from benchmarks.experiment.machine import machine
from benchmarks.experiment.tables import RESULTS_DIR, ROOT, number, table, write_results
from lfdm.export.exporting import halve_weights
from lfdm.export.runtime import OnnxPipeline
from lfdm.folders.model_folder import read_json

RESULTS, DOCUMENT = RESULTS_DIR / "export-types.json", ROOT / "docs" / "export.md"
IMAGES = sorted((ROOT / "src/lfdm/assets/puppets64/images").glob("*.png"))
LABELS = ("wave", "jump", "kick", "walk")
MARKER = "<!-- export types: rendered by python -m benchmarks.export_types --render -->"
NUM_CALIBRATION = 4
SEED_OFFSET = 100
"""Between the noise of calibration and that of measuring."""
STATIC = {"per_channel": True, "weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}


class _Recorder(CalibrationDataReader):
    """The inputs of one network in calls of a pipeline."""

    def __init__(self, pipe: OnnxPipeline, network: str) -> None:
        run, inputs = pipe._run, []
        pipe._run = lambda name, **given: (inputs.append(given) if name == network else None, run(name, **given))[1]
        for index in range(NUM_CALIBRATION):
            pipe(IMAGES[index % len(IMAGES)], LABELS[index % len(LABELS)], seed=index)
        self.inputs = iter(inputs)

    def get_next(self) -> Any:
        return next(self.inputs, None)


def variants(exported: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and folder of each variant."""
    yield "float32", exported
    for name in ("float16 weights", "denoiser dynamic", "denoiser static", "denoiser static, convolutions only", "all static"):
        target = folder / name.replace(" ", "-")
        shutil.copytree(exported, target)
        if name == "float16 weights":
            for file in target.glob("*.onnx"):
                halve_weights(file)
        elif name == "denoiser dynamic":
            quantize_dynamic(target / "denoiser.onnx", target / "denoiser.onnx", weight_type=QuantType.QInt8, per_channel=True)
        else:
            options = {**STATIC, "op_types_to_quantize": ["Conv"]} if "only" in name else STATIC
            for network in ("encoder", "denoiser", "decoder") if name == "all static" else ("denoiser",):
                file = target / f"{network}.onnx"
                quant_pre_process(file, file, skip_symbolic_shape=True)
                quantize_static(file, file, _Recorder(OnnxPipeline(exported, num_threads=1), network), **options)
        yield name, target


def measure(exported: Path) -> dict[str, Any]:
    """Return size, processor time and difference to float32 of every variant."""
    calls = [(image, label, SEED_OFFSET + i) for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))] * 2
    rows, expected = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in variants(exported, Path(temporary)):
            pipe, videos, seconds = OnnxPipeline(folder, num_threads=1), [], []
            for image, label, seed in calls:
                start = time.process_time()
                videos.append(pipe(image, label, seed=seed).astype(float))
                seconds.append(time.process_time() - start)
            expected = expected or videos
            apart = [np.abs(a - b) for a, b in zip(videos, expected, strict=True)]
            rows[name] = {
                "megabytes": sum(file.stat().st_size for file in folder.glob("*.onnx")) / 1e6,
                "denoiser_megabytes": (folder / "denoiser.onnx").stat().st_size / 1e6,
                "seconds": min(seconds[1:]),
                "mean_difference": float(np.mean([one.mean() for one in apart])),
                "largest_difference": float(np.max([one.max() for one in apart])),
                "psnr": float(np.mean([_psnr(one) for one in apart])),
                "motion": float(np.mean([np.abs(np.diff(video, axis=0)).mean() for video in videos])),
            }
            print(name, rows[name], flush=True)
    return {"model": exported.name, "machine": machine(), "videos": len(calls) // 2, "rows": rows}


def _psnr(difference: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / max(float(np.square(difference).mean()), 1e-3)))


def render(results: dict[str, Any]) -> str:
    """Return the table of docs/export.md."""
    still = results["rows"]["float32"]["motion"]
    rows = [
        [
            name,
            number(row["megabytes"], 1),
            number(row["seconds"]),
            number(row["mean_difference"]),
            number(row["largest_difference"], 0),
            "-" if name == "float32" else number(row["psnr"], 1),
            number(row["motion"] / still),
        ]
        for name, row in results["rows"].items()
    ]
    head = ["networks", "MB", "s a video", "mean difference", "largest", "PSNR, dB", "motion"]
    return f"{results['videos']} videos of `puppets64`, 16 frames, {results['machine']}.\n\n{table(head, rows)}"


def write_document(results: dict[str, Any]) -> None:
    """Replace the table after the marker in docs/export.md."""
    before, _, after = DOCUMENT.read_text().partition(MARKER)
    _, _, rest = after.partition("\n\n## ")
    DOCUMENT.write_text(f"{before}{MARKER}\n{render(results)}\n## {rest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path, nargs="?", help="folder that `lfdm export` has written, in float32")
    parser.add_argument("--render", action="store_true", help="only write the table again")
    arguments = parser.parse_args()
    if not arguments.render:
        write_results(measure(arguments.exported), RESULTS)
    write_document(read_json(RESULTS))


if __name__ == "__main__":
    main()
