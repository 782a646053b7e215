"""Models with random weights by a seed, written as Hugging Face folders in bfloat16; token sequences as long as chats.

    shapes.py OUT_DIR TOKENIZER_DIR SHAPE…

writes the shapes in this order, each complete once its file `ready` is there. Needs nothing beside Python: the
numbers are one block of random values, which every tensor reads from a place of its own.
"""

import json
import pathlib
import random
import re
import struct
import sys
import zlib

# hidden, intermediate, layers, heads, key heads, head width, vocabulary, tied head, base of the rotation
SHAPES = {
    "smollm2-135m": (576, 1536, 30, 9, 3, 64, 49152, True, 100000.0),
    "llama-1.17b": (2048, 5632, 22, 32, 4, 64, 49152, False, 10000.0),
    "llama-8b": (4096, 14336, 32, 32, 8, 128, 128256, False, 500000.0),
    "tiny-tied": (64, 112, 2, 4, 2, 16, 320, True, 10000.0),
    "tiny-untied": (96, 160, 3, 6, 2, 16, 320, False, 10000.0),
}

# Little to read and much to keep: long sequences need hundreds of gigabytes of activations.
DEEP = (256, 512, 400, 4, 4, 64, 320, True, 10000.0)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

# Elements of the block of random values: odd, so that rows of a tensor differ.
PERIOD = (1 << 25) + 35

# Tokens that a chat template adds to an example: roles, marks, a system message.
TEMPLATE_TOKENS = 36


def config(shape):
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, tied, theta = shape
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary,
        "tie_word_embeddings": tied, "rope_theta": theta, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 131072, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }


def tensors(shape):
    """Names and sizes, in the file's order."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, tied, _ = shape
    found = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        block = f"model.layers.{layer}."
        found += [
            (block + "self_attn.q_proj.weight", (heads * head_dim, hidden)),
            (block + "self_attn.k_proj.weight", (kv_heads * head_dim, hidden)),
            (block + "self_attn.v_proj.weight", (kv_heads * head_dim, hidden)),
            (block + "self_attn.o_proj.weight", (hidden, heads * head_dim)),
            (block + "mlp.gate_proj.weight", (intermediate, hidden)),
            (block + "mlp.up_proj.weight", (intermediate, hidden)),
            (block + "mlp.down_proj.weight", (hidden, intermediate)),
            (block + "input_layernorm.weight", (hidden,)),
            (block + "post_attention_layernorm.weight", (hidden,)),
        ]
    found.append(("model.norm.weight", (hidden,)))
    return found if tied else [*found, ("lm_head.weight", (vocabulary, hidden))]


def elements(size):
    count = 1
    for extent in size:
        count *= extent
    return count


def parameters(shape):
    return sum(elements(size) for _, size in tensors(shape))


def random_block(seed):
    """PERIOD values in bfloat16, ± 0.0078 to 0.031, evenly over the bits: their root mean square is 0.02."""
    numbers = random.Random(seed)
    signs = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))
    block = bytearray(2 * PERIOD)
    block[0::2] = numbers.randbytes(PERIOD)
    block[1::2] = numbers.randbytes(PERIOD).translate(signs)
    return block


def header(shape):
    entries, at = {}, 0
    for name, size in tensors(shape):
        after = at + 2 * elements(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, after]}
        at = after
    text = json.dumps(entries | {"__metadata__": {"format": "pt"}}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def begin(folder, shape, tokenizer):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1), encoding="utf-8")
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((tokenizer / name).read_bytes())


def write(folder, shape, tokenizer, block):
    begin(folder, shape, tokenizer)
    view = memoryview(block)
    with (folder / "model.safetensors").open("wb", buffering=0) as file:
        file.write(header(shape)[0])
        for name, size in tensors(shape):
            left = 2 * elements(size)
            if len(size) == 1:
                file.write(struct.pack("<H", 0x3F80) * size[0])
                continue
            at = 2 * (zlib.crc32(name.encode()) % PERIOD)
            while left:
                wrote = file.write(view[at:at + min(left, 1 << 24)])
                left -= wrote
                at = (at + wrote) % len(view)
    (folder / "ready").touch()


def write_deep(folder, tokenizer):
    """The deep model; its weights are a hole in the file, since its job is refused before they are loaded."""
    begin(folder, DEEP, tokenizer)
    head, size = header(DEEP)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


PIECE = re.compile(r"\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+")


def chat_lengths(chats):
    """Tokens and supervised tokens of each example, counted as words, digits and signs: a tokenizer of fifty
    thousand entries makes 1 to 2 % more of GSM8K."""
    lengths = []
    for line in chats.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        counts = [len(PIECE.findall(message["content"])) for message in messages]
        lengths.append((sum(counts) + TEMPLATE_TOKENS, counts[-1] + 1))
    return lengths


def write_tokens(path, lengths, vocabulary):
    """Random tokens with these lengths and supervised ends, for hone and PyTorch alike."""
    numbers = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for tokens, supervised in lengths:
            line = {"input_ids": [numbers.randrange(vocabulary) for _ in range(tokens)],
                    "loss_mask": [False] * (tokens - supervised) + [True] * supervised}
            file.write(json.dumps(line) + "\n")


def main():
    out, tokenizer = map(pathlib.Path, sys.argv[1:3])
    block = random_block(7)
    for name in sys.argv[3:]:
        write(out / name, SHAPES[name], tokenizer, block)


if __name__ == "__main__":
    main()
