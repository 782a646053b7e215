"""hone against transformers + PEFT on the same work, one after the other in one run.

A row is some work: hone does it, then PEFT in each way that a user might choose, and so on for every
round; the medians count. PEFT's figure is its faster default (bfloat16 base, adapter in float32),
padded or packed, whichever is faster; with the adapter in bfloat16 it stands beside it, since that
rounds the adapter in every step. Progress goes to stderr, tables in Markdown to stdout, every report
as JSON to target/bench/results.json.
"""

import argparse
import datetime
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

import page

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = ROOT / "target" / "bench"
GGUF = ROOT / "models" / "smollm2-135m-instruct"
SMOLLM2 = INPUTS / "smollm2"
GSM8K = ROOT / "tests" / "data" / "gsm8k" / "train-64.jsonl"
RESULTS = INPUTS / "results.json"
BEGIN, END = "<!-- results: written by benches/run --write -->", "<!-- end of results -->"

FP32 = ["--dtype", "fp32"]
BF16 = ["--dtype", "bf16"]
ROUNDED = ["--dtype", "bf16", "--adapter-dtype", "same"]


class Row:
    """Some work: `hone` and `peft` are arguments; `defaults` and `beside` are PEFT's variants. Steps
    are all and those that are left out; PEFT's every step costs the same, so it may take fewer."""

    def __init__(self, key, name, hone, peft, defaults, beside, steps, bar, peft_steps=None):
        self.key, self.name, self.bar = key, name, bar
        self.hone, self.peft, self.steps = hone, peft, steps
        self.peft_steps = peft_steps or steps
        self.defaults, self.beside = defaults, beside


def dense(key, batch, length):
    shape = ["--mode", "dense", "--batch", str(batch)]
    return Row(key, f"dense {batch} × {length}, all tokens learnt", shape + ["--seq", str(length)],
               shape + ["--seq-len", str(length)], [BF16], [ROUNDED], (6, 2), 2.0)


def chat(key, name, data, length, steps, bar, extra=(), **more):
    work = ["--mode", "chat", "--batch", "8", "--data", str(data), *extra]
    more = {"defaults": [BF16, BF16 + ["--packing"]], "beside": []} | more
    return Row(key, name, work + ["--seq", str(length)], work + ["--max-len", str(length)],
               steps=steps, bar=bar, **more)


ROWS = [
    dense("dense-256", 4, 256),
    dense("dense-512", 2, 512),
    dense("dense-1024", 1, 1024),
    chat("chat", "chat: GSM8K, batch 8, real tokens", GSM8K, 1024, (6, 2), 2.5,
         beside=[ROUNDED, ROUNDED + ["--packing"]]),
    # All eight at once do not fit into 24 GB with PEFT: two at a time, equally long, so hardly padded.
    chat("prefix", "chat behind a system prompt of 1,500 tokens, batch 8", INPUTS / "prefix.jsonl",
         2048, (4, 1), 8.0, defaults=[BF16 + ["--micro-batch", "2"]], peft_steps=(2, 1)),
    chat("last-10", "8 epochs of GSM8K, last 10 of 30 blocks adapted", INPUTS / "gsm8k-40.jsonl", 1024,
         (40, 2), 3.0, extra=["--lora-layers", "10"], peft_steps=(7, 2)),
    Row("f32", "dense 4 × 256 in 32-bit floats alone", ["--batch", "4", "--seq", "256", "--dtype", "f32"],
        ["--batch", "4", "--seq-len", "256"], [FP32], [], (5, 2), 1.4),
]


def log(*parts):
    print(*parts, file=sys.stderr, flush=True)


def run(command):
    """The report of a command, the last line that it prints; None where it ran out of memory."""
    log("$", " ".join(str(part) for part in command))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode in (-9, 137):
        log("  ran out of memory")
        return None
    if done.returncode != 0:
        log(done.stderr[-4000:])
        raise SystemExit(f"it failed with {done.returncode}: {' '.join(map(str, command))}")
    report = json.loads(done.stdout.splitlines()[-1])
    if "tokens_per_s" in report:
        log(f"  {report['tokens_per_s']} tokens/s, {report['peak_rss_gb']} GB")
    return report


def hone(args, work, steps=None, model=SMOLLM2):
    steps = ["--steps", str(steps[0]), "--warmup-steps", str(steps[1])] if steps else []
    return run([args.hone, "bench", "train", "--json", "--threads", str(args.threads),
                "--model", str(model), *work, *steps])


def peft(args, work, steps):
    return run([sys.executable, str(ROOT / "benches" / "peft_baseline.py"), "--model", str(SMOLLM2),
                "--threads", str(args.threads), *work,
                "--steps", str(steps[0]), "--warmup-steps", str(steps[1])])


def median(reports, field):
    values = [report[field] for report in reports if report]
    return statistics.median(values) if values else None


def check_work(row, ours, theirs):
    """Both begin with the base model: their first losses on the same text agree, or the work differs."""
    if not row.key.startswith("dense") and row.key != "f32":
        ours, theirs = ours["losses"][0], theirs["losses"][0]
        # Behind the system prompt two dozen tokens are learnt; bfloat16 alone moves their mean by 1 %.
        if abs(ours - theirs) > 0.02 * theirs:
            raise SystemExit(f"{row.key}: the first loss is {ours} here and {theirs} with PEFT")


def compare(args, row):
    variants = row.defaults + row.beside
    ours, theirs = [], [[] for _ in variants]
    for number in range(args.rounds):
        log(f"--- {row.name}, round {number + 1}")
        ours.append(hone(args, row.hone, row.steps))
        for variant, reports in zip(variants, theirs):
            report = peft(args, row.peft + variant, row.peft_steps)
            reports.append(report)
            if report:
                check_work(row, ours[-1], report)

    def best(some):
        """PEFT's fastest of these variants: its speed and what memory it took then."""
        speeds = [(median(reports, "tokens_per_s") or 0, median(reports, "peak_rss_gb")) for reports in some]
        return max(speeds, key=lambda speed: speed[0]) if speeds else (None, None)

    count = len(row.defaults)
    default, default_rss = best(theirs[:count])
    rounded, _ = best(theirs[count:])
    return {
        "key": row.key, "name": row.name, "bar": row.bar,
        "hone": median(ours, "tokens_per_s"), "hone_rss": median(ours, "peak_rss_gb"),
        "gflops": median(ours, "gflops_per_s"), "peft": default, "peft_rss": default_rss,
        "peft_rounded": rounded, "reports": {"hone": ours, "peft": theirs},
    }


def ratio(ours, theirs):
    return f"{ours / theirs:.2f}" if theirs else "–"


def number(value):
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def tables(args, found):
    """Everything that was measured, in Markdown."""
    peak = found["peak"]["gflops_per_s"]
    best = next(reversed(peak.values()))
    f32 = peak.get("avx512") or peak.get("avx2") or peak["portable"]
    lines = [
        f"{found['date']}, {found['peak']['cpu']}, {args.threads} threads. "
        + ", ".join(f"{key} {value}" for key, value in found["versions"].items()) + ".", "",
        "Peak of registers alone, GFLOP/s: "
        + ", ".join(f"{key} {value:.0f}" for key, value in peak.items()) + ".", "",
        "| work | hone, tokens/s | PEFT | ratio | at least | PEFT, adapter rounded to bf16 | ratio "
        "| share of the peak | peak memory, GB: hone | PEFT | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        of = f32 if row["key"] == "f32" else best
        lines.append(
            f"| {row['name']} | {number(row['hone'])} | {number(row['peft'])} "
            f"| **{ratio(row['hone'], row['peft'])}** | {row['bar']} | {number(row['peft_rounded'])} "
            f"| {ratio(row['hone'], row['peft_rounded'])} | {row['gflops'] / of:.0%} "
            f"| {number(row['hone_rss'])} | {number(row['peft_rss'])} "
            f"| {ratio(row['peft_rss'] or 0, row['hone_rss'])} |")
    if found["start"]:
        lines += ["", "From the start of the process to the first step: "
                  + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["start"].items())
                  + " (at most 1.5)."]
    for title, key in (("tokens in a sequence", "lengths"), ("model", "sizes")):
        if found[key]:
            lines += ["", f"| {title} | tokens/s | GFLOP/s | share of the peak | peak memory, GB "
                      "| start, s |", "|---|---|---|---|---|---|"]
        for name, report in found[key].items():
            lines.append(
                f"| {name} | {number(report['tokens_per_s'])} | {number(report['gflops_per_s'])} "
                f"| {report['gflops_per_s'] / best:.0%} | {number(report['peak_rss_gb'])} "
                f"| {report['load_s']:.2f} |")
    if found["profile"]:
        lines += ["", "| where the time of dense 4 × 256 goes | share |", "|---|---|"]
        lines += [f"| {name} | {share:.1f} % |" for name, share in found["profile"].items()]
    return "\n".join(lines) + "\n"


KERNELS = [
    ("products of frozen weights and of attention (bf16 tiles)", r"tile::avx512::bf16"),
    ("gradients of the adapter (f32 tiles)", r"tile::(avx512::(float|halves)|avx2::)"),
    ("handing tiles out and moving them into place", r"tile::|matrix::|linear::"),
    ("rows into bf16 words", r"words::"),
    ("softmax and its backward, in attention and head", r"exp_and_sum|plain_row|vector::maximum|vector::scale|vector::dot|loss::"),
    ("attention, the rest", r"attention::"),
    ("activation", r"activation::"),
    ("norms, rotation, sums", r"norm::|rope::|add_scaled"),
    ("AdamW", r"adamw"),
    ("reading and packing the weights (before the first step)", r"Packed|k_quants|sha2|fill_from"),
    ("waiting for the other thread", r"rayon|crossbeam|sched|_raw_spin|futex|yield"),
]


def profile(args):
    """Shares of the samples of `perf`, by what the functions do."""
    if not args.profile or not shutil.which("perf"):
        log("no profile: it needs `perf` and --profile BINARY, a build with symbols")
        return {}
    data = INPUTS / "perf.data"
    work = ["bench", "train", "--model", str(SMOLLM2), "--batch", "4", "--seq", "256", "--steps", "8",
            "--threads", str(args.threads), "--json"]
    subprocess.run(["perf", "record", "-o", data, args.profile, *work], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    text = subprocess.run(["perf", "report", "-i", data, "--no-children", "--stdio", "-g", "none"],
                          check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    shares = {name: 0.0 for name, _ in KERNELS} | {"all else, the kernel's pages among it": 0.0}
    for line in text.splitlines():
        match = re.match(r"\s*([0-9.]+)%\s+\S+\s+\S+\s+\[.\]\s+(.*)", line)
        if match:
            kind = next((name for name, pattern in KERNELS if re.search(pattern, match[2])),
                        "all else, the kernel's pages among it")
            shares[kind] += float(match[1])
    return dict(sorted(shares.items(), key=lambda share: -share[1]))


def versions(args):
    import peft as peft_module
    import torch
    import transformers
    first = hone(args, ["--batch", "1", "--seq", "64"], (1, 0))
    return {"hone": first["versions"]["hone"], "torch": torch.__version__,
            "transformers": transformers.__version__, "peft": peft_module.__version__}


def save(found):
    RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [row.key for row in ROWS] + ["start", "lengths", "sizes", "profile"]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="ROW",
                        help="measures these and keeps what an earlier run found of the others: "
                        + ", ".join(keys))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hone", default=str(ROOT / "target" / "release" / "hone"))
    parser.add_argument("--profile", help="a hone with symbols, for the profile")
    parser.add_argument("--write", action="store_true", help="put the tables into benches/README.md")
    args = parser.parse_args()

    found = {"rows": [], "start": {}, "lengths": {}, "sizes": {}, "profile": {}}
    if set(args.only) != set(keys) and RESULTS.exists():
        found |= json.loads(RESULTS.read_text(encoding="utf-8"))
    found |= {
        "date": datetime.date.today().isoformat(),
        "versions": versions(args),
        "peak": run([args.hone, "bench", "peak", "--json", "--threads", str(args.threads)]),
    }
    rows = {row["key"]: row for row in found["rows"]}
    for row in ROWS:
        if row.key in args.only:
            rows[row.key] = compare(args, row) | {"rounds": args.rounds, "date": found["date"]}
            found["rows"] = [rows[row.key] for row in ROWS if row.key in rows]
            save(found)
    if "start" in args.only:
        for name, model in (("the GGUF of `models pull`", GGUF), ("the folder in bf16", SMOLLM2)):
            reports = [hone(args, ["--batch", "1", "--seq", "64"], (1, 0), model) for _ in range(3)]
            found["start"][name] = median(reports, "load_s")
    if "lengths" in args.only:
        for length in (256, 512, 1024, 2048, 4096):
            batch = max(1, 2048 // length)
            work = ["--batch", str(batch), "--seq", str(length)]
            found["lengths"][f"{batch} × {length}"] = hone(args, work, (4, 1))
    if "sizes" in args.only:
        for name in ("llama-135m", "llama-360m", "llama-1.1b"):
            work = ["--batch", "1", "--seq", "512"]
            found["sizes"][name] = hone(args, work, (4, 1), INPUTS / name)
    if "profile" in args.only:
        found["profile"] = profile(args)

    save(found)
    text = tables(args, found)
    print(text)
    if args.write:
        page.write(BEGIN, END, text)


if __name__ == "__main__":
    main()
