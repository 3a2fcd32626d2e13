"""Latency of token merging: a model, photos and thresholds → tokens, GFLOPs and milliseconds, with and without.

    python -m benchmarks.token_merging MODEL PHOTOS [--thresholds 0.95 0.9 0.8] [--layers 1 7]

Give it on a quiet machine. What merging costs in quality is `eomt benchmark --calibrate-merging`'s to find.
"""

import argparse

import torch

from eomt.auto import register
from eomt.benchmarking.candidates import Candidate
from eomt.benchmarking.measure import measure_seconds
from eomt.benchmarking.photos import mean_flops, photo_inputs

CPU = torch.device("cpu")


@torch.inference_mode()
def measure(model, photos: list[torch.Tensor], repeats: int) -> dict[str, float]:
    """Mean over the photos: share of the patch tokens that reaches the last blocks, GFLOPs, milliseconds."""
    shares = []
    number, prefix = model.config.num_queries, model.config.num_prefix_tokens

    def note(layer, inputs, output):
        shares.append(output.shape[1] - number - prefix)

    for pixels in photos:
        hook = model.layers[-1].register_forward_hook(note)
        model(pixel_values=pixels)
        hook.remove()
        grid = model.patch_grid(pixels)
        shares[-1] /= grid[0] * grid[1]
    seconds = [measure_seconds(lambda p=p: model(pixel_values=p), CPU, 1, repeats)["median"] for p in photos]
    return {
        "tokens": sum(shares) / len(shares),
        "gflops": mean_flops(model, photos) / 1e9,
        "ms": 1e3 * sum(seconds) / len(seconds),
    }


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.token_merging", description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("photos", nargs="+")
    p.add_argument("--thresholds", nargs="+", type=float, default=[0.98, 0.95, 0.9, 0.85, 0.8])
    p.add_argument("--layers", nargs=2, type=int, default=[1, 7])
    p.add_argument("--repeats", type=int, default=5)
    options = p.parse_args(argv)
    register()
    candidate = Candidate.find(options.model, masked=False)
    model = candidate.load(CPU, torch.float32)
    photos = photo_inputs(candidate, options.photos, CPU, torch.float32)
    print(f"{'threshold':>9}  {'tokens':>6}  {'GFLOPs':>8}  {'ms':>7}")
    for threshold in (None, *sorted(options.thresholds, reverse=True)):
        model.set_token_merging(layers=options.layers, threshold=threshold)
        found = measure(model, photos, options.repeats)
        name = "off" if threshold is None else f"{threshold:g}"
        print(f"{name:>9}  {found['tokens']:6.0%}  {found['gflops']:8.2f}  {found['ms']:7.0f}", flush=True)


if __name__ == "__main__":
    main()
