#!/usr/bin/env python3
"""LoRA SFT baseline: what a user would run without our engine.

A plain transformers + PEFT training loop on the CPU: load a Hugging Face model
directory, wrap every linear layer except the LM head with LoRA, and take AdamW
steps with gradient clipping.  The last line on stdout is one JSON object with the
speed, the memory and the losses; progress goes to stderr.

Modes
  dense  one random batch of shape batch x seq-len per step, every token is real
         and every token but the first carries loss.
  chat   real chat JSONL, one {"messages": [...]} per line, rendered with the model's
         chat template; loss on assistant content plus its end-of-turn token only;
         batches are taken in file order and right-padded to their longest row.
  chat --packing   the same examples per step, concatenated into one padding-free
         row with restarting position ids (the block-diagonal mask TRL relies on for
         padding-free training), so the loss equals the padded run's.

Examples
  peft_baseline.py --model DIR --mode dense --batch 4 --seq-len 256 --dtype bf16
  peft_baseline.py --model DIR --mode chat --data train.jsonl --batch 8 --steps 20
  peft_baseline.py --model DIR --mode chat --data train.jsonl --batch 8 --steps 60 \\
      --eval-data valid.jsonl --save-init-adapter init/ --curve-out curve.json
"""

import argparse
import hashlib
import json
import math
import os
import platform
import resource
import statistics
import sys
import time

import torch
import transformers
import peft
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORE = -100


def log(*parts):
    print(*parts, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- data


def assistant_spans(tokenizer, messages):
    """Rendered text of the conversation and the character spans that carry loss.

    A span runs from the first character of an assistant message's content to the
    end of its end-of-turn token; what the template puts after that token (for
    ChatML, a newline) is not part of the span.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight", 1) == 0:
            continue
        head = tokenizer.apply_chat_template(
            messages[:i], tokenize=False, add_generation_prompt=True)
        turn = tokenizer.apply_chat_template(messages[:i + 1], tokenize=False)
        if not (turn.startswith(head) and text.startswith(turn)):
            raise ValueError("this chat template is not prefix-stable")
        end = turn.rfind(tokenizer.eos_token)
        end = end + len(tokenizer.eos_token) if end >= len(head) else len(turn)
        spans.append((len(head), end))
    return text, spans


def encode_chat(tokenizer, messages, max_len):
    """Token ids and labels (ids where loss applies, else -100), cut to max_len.

    A token carries loss if it shares a character with a span, which is also how
    transformers' return_assistant_tokens_mask decides.
    """
    text, spans = assistant_spans(tokenizer, messages)
    enc = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = enc["input_ids"], []
    for token, (start, stop) in zip(ids, enc["offset_mapping"]):
        inside = any(start < b and stop > a for a, b in spans)
        labels.append(token if inside else IGNORE)
    return ids[:max_len], labels[:max_len]


def load_chat(tokenizer, path, max_len):
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f if line.strip()]
    return [encode_chat(tokenizer, row["messages"], max_len) for row in rows]


def collate_padded(examples, pad_id):
    width = max(len(ids) for ids, _ in examples)
    n = len(examples)
    out = {
        "input_ids": torch.full((n, width), pad_id, dtype=torch.long),
        "attention_mask": torch.zeros((n, width), dtype=torch.long),
        "labels": torch.full((n, width), IGNORE, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(examples):
        out["input_ids"][row, :len(ids)] = torch.tensor(ids)
        out["attention_mask"][row, :len(ids)] = 1
        out["labels"][row, :len(ids)] = torch.tensor(labels)
    return out


def collate_packed(examples):
    """One row, no padding.  Position ids that restart at 0 mark the boundaries, and
    each example's first label is dropped: nothing may predict it."""
    ids, labels, positions = [], [], []
    for example_ids, example_labels in examples:
        ids += example_ids
        labels += [IGNORE] + example_labels[1:]
        positions += list(range(len(example_ids)))
    return {key: torch.tensor([value]) for key, value in
            (("input_ids", ids), ("labels", labels), ("position_ids", positions))}


# -------------------------------------------------------------------------- model


def peak_rss_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def rss_gb():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def cpu_model():
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def save_adapter(model, folder, model_dir):
    """PEFT's adapter folder, without its README and without this machine's paths."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = os.path.basename(os.path.normpath(model_dir))
    model.save_pretrained(folder, save_embedding_layers=False)
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)


def last_layers(model, count):
    """Indexes of the last `count` blocks, or None for all."""
    if count is None:
        return None
    layers = model.config.num_hidden_layers
    return list(range(layers - count, layers))


def target_modules(lora_layers):
    """All linear layers of the blocks; by name where blocks are chosen, which PEFT asks for."""
    if lora_layers is None:
        return "all-linear"
    return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_model(args):
    dtype = torch.float32 if args.dtype == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation=args.attn)
    model.config.use_cache = False
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False})
    # PEFT keeps adapter weights in fp32 over a bf16 base unless told otherwise.
    cast = args.adapter_dtype == "fp32"
    torch.manual_seed(args.seed)
    if args.init_adapter:
        model = peft.PeftModel.from_pretrained(
            model, args.init_adapter, is_trainable=True, autocast_adapter_dtype=cast)
    else:
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=0.0,
            target_modules=target_modules(args.lora_layers), bias="none",
            task_type="CAUSAL_LM", layers_to_transform=last_layers(model, args.lora_layers)),
            autocast_adapter_dtype=cast)
    model.train()
    return model


def take_step(run, params, opt, parts, bearing, clip):
    """One optimiser step over parts that each run at once; the mean loss, and the norm before clipping."""
    loss = 0.0
    for part in parts:
        # The mean over a part, weighed to the mean over the step.
        share = int((part["labels"][:, 1:] != IGNORE).sum()) / bearing
        part_loss = run(**part).loss * share
        part_loss.backward()
        loss = loss + part_loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(params, clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    return loss, norm


@torch.no_grad()
def evaluate(model, examples, batch, pad_id):
    """Mean loss over all loss-bearing tokens of the set, and their number."""
    model.eval()
    total, count = 0.0, 0
    for i in range(0, len(examples), batch):
        data = collate_padded(examples[i:i + batch], pad_id)
        tokens = int((data["labels"][:, 1:] != IGNORE).sum())
        total += float(model(**data).loss) * tokens
        count += tokens
    model.train()
    return total / count, count


# --------------------------------------------------------------------------- main


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--model", required=True, help="Hugging Face model directory")
    p.add_argument("--mode", choices=["dense", "chat"], default="dense")
    p.add_argument("--data", help="chat JSONL (chat mode)")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--adapter-dtype", choices=["fp32", "same"], default="fp32",
                   help="adapter weights: fp32 (PEFT's default) or the model's dtype")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--micro-batch", type=int, help="rows that run at once, chat mode; all by default")
    p.add_argument("--seq-len", type=int, default=256, help="dense mode")
    p.add_argument("--max-len", type=int, default=1024, help="chat mode")
    p.add_argument("--packing", action="store_true", help="padding-free rows, chat mode")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--warmup-steps", type=int, default=2, help="left out of the timing")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lora-r", type=int, default=8)
    p.add_argument("--lora-layers", type=int, help="adapt the last so many blocks alone")
    p.add_argument("--lora-alpha", type=int, default=16)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--optim", choices=["fused", "default"], default="fused",
                   help="torch AdamW implementation; fused is what HF Trainer picks")
    p.add_argument("--attn", default="sdpa")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--gradient-checkpointing", action="store_true")
    p.add_argument("--init-adapter", help="start from this PEFT adapter folder")
    p.add_argument("--save-init-adapter", help="write the initial adapter here")
    p.add_argument("--save-adapter", help="write the final adapter here")
    p.add_argument("--eval-data", help="chat JSONL, evaluated before and after")
    p.add_argument("--curve-out", help="write losses, grad norms and settings as JSON")
    args = p.parse_args(argv)
    if args.mode == "chat" and not args.data:
        p.error("chat mode needs --data")
    if args.packing and args.mode != "chat":
        p.error("--packing needs chat mode")
    return args


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    model = build_model(args)
    loaded_gb = rss_gb()
    params = [q for q in model.parameters() if q.requires_grad]
    if args.save_init_adapter:
        save_adapter(model, args.save_init_adapter, args.model)
    opt = torch.optim.AdamW(params, lr=args.lr, betas=(0.9, 0.999), eps=1e-8,
                            weight_decay=args.weight_decay,
                            fused=True if args.optim == "fused" else None)
    run = torch.compile(model) if args.compile else model

    examples = eval_examples = None
    pad_id = 0
    if args.mode == "chat":
        tok = AutoTokenizer.from_pretrained(args.model)
        pad_id = tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id
        examples = load_chat(tok, args.data, args.max_len)
        if args.eval_data:
            eval_examples = load_chat(tok, args.eval_data, args.max_len)

    vocab = model.get_base_model().config.vocab_size
    gen = torch.Generator().manual_seed(args.seed)

    def next_batch(step):
        """The step's parts, each a batch that runs at once, and its rows, real tokens and loss-bearing tokens."""
        if args.mode == "dense":
            ids = torch.randint(0, vocab, (args.batch, args.seq_len), generator=gen)
            return ([{"input_ids": ids, "labels": ids}], args.batch, ids.numel(),
                    args.batch * (args.seq_len - 1))
        first = step * args.batch
        rows = [examples[(first + i) % len(examples)] for i in range(args.batch)]
        at_once = args.micro_batch or len(rows)
        parts = [rows[i:i + at_once] for i in range(0, len(rows), at_once)]
        data = [collate_packed(part) if args.packing else collate_padded(part, pad_id)
                for part in parts]
        return (data, len(rows), sum(len(ids) for ids, _ in rows),
                sum(sum(x != IGNORE for x in labels[1:]) for _, labels in rows))

    valid_before = evaluate(model, eval_examples, args.batch, pad_id) if eval_examples else None
    if valid_before:
        log(f"valid loss before {valid_before[0]:.6f} over {valid_before[1]} tokens")

    records = []
    for step in range(args.steps):
        data, rows, real, bearing = next_batch(step)
        begin = time.perf_counter()
        loss, norm = take_step(run, params, opt, data, bearing, args.clip)
        took = time.perf_counter() - begin
        records.append({"loss": float(loss.detach()), "grad_norm": float(norm), "seconds": took,
                        "rows": rows, "tokens": real, "loss_tokens": bearing})
        log(f"step {step + 1} loss {records[-1]['loss']:.5f} norm {float(norm):.4f} "
            f"{took:.3f}s {real / took:.1f} tok/s")
    train_peak = peak_rss_gb()

    valid_after = evaluate(model, eval_examples, args.batch, pad_id) if eval_examples else None
    if valid_after:
        log(f"valid loss after {valid_after[0]:.6f}")
    if args.save_adapter:
        save_adapter(model, args.save_adapter, args.model)

    timed = records[min(args.warmup_steps, args.steps - 1):]
    seconds = sum(r["seconds"] for r in timed)
    result = {
        "mode": args.mode + ("+packing" if args.packing else ""),
        "dtype": args.dtype,
        "adapter_dtype": args.adapter_dtype,
        "threads": args.threads,
        "batch": args.batch,
        "seq_len": args.seq_len if args.mode == "dense" else None,
        "max_len": args.max_len if args.mode == "chat" else None,
        "steps": args.steps,
        "timed_steps": len(timed),
        "compile": args.compile,
        "gradient_checkpointing": args.gradient_checkpointing,
        "tokens_per_s": round(sum(r["tokens"] for r in timed) / seconds, 2),
        "loss_tokens_per_s": round(sum(r["loss_tokens"] for r in timed) / seconds, 2),
        "examples_per_s": round(sum(r["rows"] for r in timed) / seconds, 4),
        "median_step_s": round(statistics.median(r["seconds"] for r in timed), 4),
        "first_step_s": round(records[0]["seconds"], 3),
        "peak_rss_gb": round(train_peak, 3),
        "rss_after_load_gb": round(loaded_gb, 3),
        "trainable_params": sum(q.numel() for q in params),
        "losses": [round(r["loss"], 6) for r in records],
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "peft": peft.__version__},
        "cpu": cpu_model(),
    }

    if args.curve_out:
        digest = hashlib.sha256(open(args.data, "rb").read()).hexdigest() if args.data else None
        curve = {
            "what": "LoRA SFT reference run: plain transformers + PEFT loop",
            "settings": {
                "lora_r": args.lora_r, "lora_alpha": args.lora_alpha, "lora_dropout": 0.0,
                "target_modules": "all linear layers except lm_head",
                "dtype": args.dtype, "lr": args.lr, "lr_schedule": "constant",
                "optimizer": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8,
                "weight_decay": args.weight_decay, "clip_grad_norm": args.clip,
                "batch": args.batch, "max_len": args.max_len, "order": "file order, no shuffle",
                "padding": "none, packed" if args.packing else "right, to the batch's longest row",
                "loss": "mean over the batch's loss-bearing tokens (assistant content "
                        "and its end-of-turn token; not the newline after it)",
                "init_adapter_seed": None if args.init_adapter else args.seed,
            },
            "data_sha256": digest,
            "valid": None if not valid_before else {
                "loss_before": valid_before[0], "loss_after": valid_after[0],
                "loss_tokens": valid_before[1], "examples": len(eval_examples),
                "perplexity_before": math.exp(valid_before[0]),
                "perplexity_after": math.exp(valid_after[0])},
            "steps": [{"step": i + 1, **{k: r[k] for k in
                       ("loss", "grad_norm", "tokens", "loss_tokens", "rows")}}
                      for i, r in enumerate(records)],
            "first_example": None if not examples else {
                "input_ids": examples[0][0],
                "loss_mask": [int(x != IGNORE) for x in examples[0][1]]},
            "versions": result["versions"], "threads": args.threads, "cpu": result["cpu"],
        }
        with open(args.curve_out, "w") as f:
            json.dump(curve, f, indent=1)
            f.write("\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
