#!/usr/bin/env python3
"""transformers + PEFT on one model: several works in one process, one JSON object a line.

The loop, the batches and the adapter are those of ../peft_baseline.py; here the model goes to a device, steps end
with the device's work, and memory is the device's.
"""

import argparse
import gc
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
import peft_baseline as baseline


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def examples(path):
    found = []
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        labels = [token if learnt else baseline.IGNORE for token, learnt in zip(row["input_ids"], row["loss_mask"])]
        found.append((row["input_ids"], labels))
    return found


def batch(work, step, rows, device):
    """The step's one part, its real tokens and its supervised tokens."""
    chosen = [rows[(step * work["batch"] + index) % len(rows)] for index in range(work["batch"])]
    if work["packing"]:
        data = baseline.collate_packed(chosen)
    else:
        data = baseline.collate_padded(chosen, 0)
    if len({len(ids) for ids, _ in chosen}) == 1 and not work["packing"]:
        # Nothing is padded: without a mask PyTorch takes its fastest attention.
        del data["attention_mask"]
    tokens = sum(len(ids) for ids, _ in chosen)
    bearing = sum(sum(label != baseline.IGNORE for label in labels[1:]) for _, labels in chosen)
    return [{key: value.to(device) for key, value in data.items()}], tokens, bearing


def profile(step, device):
    """Kernels of a step, and how long the device was busy; PyTorch's own profiler counts them."""
    from torch.profiler import ProfilerActivity, profile as profiler
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        step()
        wait(device)
        took = time.perf_counter() - began
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {"launches": len(kernels), "busy_s": round(busy, 4), "profiled_step_s": round(took, 4)}


def measure(work, model, params, device, clip=1.0):
    optimiser = torch.optim.AdamW(params, lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    if work["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    run = torch.compile(model) if work["compile"] else model
    rows = examples(work["data"])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, tokens, losses = [], [], []
    for step in range(work["steps"]):
        parts, real, bearing = batch(work, step, rows, device)
        wait(device)
        began = time.perf_counter()
        loss, _ = baseline.take_step(run, params, optimiser, parts, bearing, clip)
        wait(device)
        seconds.append(time.perf_counter() - began)
        tokens.append(real)
        losses.append(round(float(loss), 6))
    first = min(work["warmup"], work["steps"] - 1)
    report = {
        "tokens_per_s": round(sum(tokens[first:]) / sum(seconds[first:]), 2),
        "median_step_s": round(statistics.median(seconds[first:]), 4), "first_step_s": round(seconds[0], 3),
        "timed_steps": len(seconds) - first, "losses": losses,
    }
    if device == "cuda":
        report["allocated_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        report["reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
        parts, _, bearing = batch(work, 0, rows, device)
        try:
            report["profile"] = profile(
                lambda: baseline.take_step(run, params, optimiser, parts, bearing, clip), device)
        except Exception as error:
            report["profile"] = {"failed": f"{type(error).__name__}: {error}"}
    else:
        report["peak_rss_gb"] = round(baseline.peak_rss_gb(), 3)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16", help="of the frozen weights")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--works", type=json.loads, required=True)
    args = parser.parse_args()
    settings = baseline.parse_args(["--model", args.model, "--dtype", {"f32": "fp32"}.get(args.dtype, args.dtype),
                                    "--lora-r", str(args.rank),
                                    "--lora-alpha", str(2 * args.rank)])
    baseline.transformers.utils.logging.disable_progress_bar()
    if args.device == "cpu":
        # What is tiny enough to run here is slower with more threads.
        torch.set_num_threads(1)
    began = time.perf_counter()
    model = baseline.build_model(settings).to(args.device)
    wait(args.device)
    loaded = round(time.perf_counter() - began, 2)
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    beginning = [parameter.detach().clone() for parameter in params]
    for work in args.works:
        with torch.no_grad():
            for parameter, value in zip(params, beginning):
                parameter.copy_(value)
        report = {"key": work["key"], "variant": work["variant"], "dtype": args.dtype, "load_s": loaded}
        try:
            report |= measure(work, model, params, args.device)
        except torch.OutOfMemoryError as error:
            report["failed"] = f"out of memory: {str(error).splitlines()[0]}"
        except Exception as error:
            report["failed"] = f"{type(error).__name__}: {str(error)[:800]}"
        print(json.dumps(report), flush=True)
        for parameter in params:
            parameter.grad = None
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
