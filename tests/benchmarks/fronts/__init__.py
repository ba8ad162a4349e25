"""Fronts of PSNR against what a segmenter sees: fine-tuning with different objectives from one common network.

    python -m tests.benchmarks.fronts run --data ../shared/data --out fronts --seconds 600
    python -m tests.benchmarks.fronts read fronts/results.jsonl.gz

For each task (noise of sigma 50; super-resolution by 4) the published FFDNet is tuned with L1 on CamVid to a common
start. From there every run minimises L1 + weight * objective with the same crops and the same noise for all objectives
of a seed. The weight is given as a ratio r: at the start network the objective's gradient by the parameters is r times
as long as that of L1. Several ratios of an objective make its front. `run` can be called again and goes on where it
was stopped; `read` needs no GPU. The module's data are those of `--data`: `camvid/` in the Cityscapes layout and
`weights/` with the published FFDNet, both ESPNets and SqueezeNet.
"""
