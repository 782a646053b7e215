"""What the benchmarks run on, made from the model that `hone models pull` brings and from GSM8K.

    make_inputs.py MODELS_DIR OUT_DIR

Writes into OUT_DIR, and leaves what is there already:
  smollm2/          SmolLM2-135M-Instruct as a Hugging Face folder in bf16, from its GGUF
  gsm8k-40.jsonl    40 GSM8K examples: five steps of eight, an epoch that is run eight times
  prefix.jsonl      GSM8K questions with the number as answer, behind one long system prompt
  llama-135m/ …     Llama-shaped models with random weights, for cost against size
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
GSM8K = HERE.parent / "tests" / "data" / "gsm8k" / "train-64.jsonl"

# hidden, intermediate, layers, heads, key heads, head width
SIZES = {
    "llama-135m": (576, 1536, 30, 9, 3, 64),
    "llama-360m": (960, 2560, 32, 15, 5, 64),
    "llama-1.1b": (2048, 5632, 22, 32, 4, 64),
}


def make_smollm2(models, out):
    """transformers reads the weights from the GGUF; of the tokenizer it forgets that digits stand alone."""
    source = models / "smollm2-135m-instruct"
    name = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    known = {"quantization_config", "transformers_version", "_name_or_path"}
    config = {key: value for key, value in read.config.to_dict().items() if key not in known}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def make_random(smollm2, out, shape):
    """A Llama of some shape with the vocabulary and tokenizer of SmolLM2, its head tied."""
    hidden, intermediate, layers, heads, kv_heads, head_dim = shape
    config = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "tie_word_embeddings": True,
    }
    out.mkdir(parents=True)
    for path in smollm2.iterdir():
        if path.suffix in {".json", ".jinja"} and path.name != "config.json":
            (out / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def add(name, *size):
        tensors[name] = (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)

    add("model.embed_tokens.weight", config["vocab_size"], hidden)
    for layer in range(layers):
        block = f"model.layers.{layer}."
        add(block + "self_attn.q_proj.weight", heads * head_dim, hidden)
        add(block + "self_attn.k_proj.weight", kv_heads * head_dim, hidden)
        add(block + "self_attn.v_proj.weight", kv_heads * head_dim, hidden)
        add(block + "self_attn.o_proj.weight", hidden, heads * head_dim)
        add(block + "mlp.gate_proj.weight", intermediate, hidden)
        add(block + "mlp.up_proj.weight", intermediate, hidden)
        add(block + "mlp.down_proj.weight", hidden, intermediate)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[block + norm + ".weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


RULES = [
    "Read the whole question before you begin; the number that matters is often in its last sentence.",
    "Write down what is asked for and its unit before you compute anything.",
    "Do one operation at a time, and name what each result counts.",
    "Never round before the end unless the question says that whole things are counted.",
    "When a share is given in percent, turn it into a fraction of what it is a share of.",
    "When two people share something, check that their parts add up to the whole.",
    "A price for one becomes a price for many by multiplying, never by adding once more.",
    "When something happens every so many days, decide whether the first day counts.",
    "Distances add up when the direction stays, and cancel when it turns around.",
    "Speeds are distances by time: bring both into units that go together first.",
    "When a quantity doubles several times, multiply by two that often; do not add.",
    "Half of a third is a sixth; write fractions out rather than guessing at decimals.",
    "An age in the past or the future changes by the same number for everybody.",
    "When something is left over, say how much, and whether the question wants it.",
    "Use the calculator for products of numbers with more than two digits.",
    "Use the unit converter whenever two units of the same kind meet in one question.",
    "Use the calendar for questions about weekdays, months and leap years.",
    "If a question cannot be answered from what it says, name what is missing.",
    "If a question has two readings, take the one that an eleven-year-old would take.",
    "Check the result by going backwards: put it into the question and see whether it holds.",
    "Money has two digits behind the point; people, animals and chairs have none.",
    "Do not repeat the question, and do not praise it.",
    "Do not apologise; if the last answer was wrong, give the right one.",
    "When a question speaks of a pair, a dozen, a score or a fortnight, write the number beside the word.",
    "Words such as more, fewer, older and heavier compare: find out with what before you add or subtract.",
    "Times as many as means multiply; times more than means the same here, whatever some books say.",
    "An average is the sum by the count: ask yourself what is counted, and whether a zero counts too.",
    "Something that is bought and sold again has two prices; the profit is their difference.",
    "A discount is taken off the price before it, not off the first price, when there are several.",
    "Wages for overtime apply to the hours beyond the limit alone, not to all hours of the week.",
    "If pages are read, cakes are eaten or tickets are sold every day, list the days and their numbers.",
    "Areas multiply two lengths, volumes three; a doubled side makes an area four times as large.",
    "A ratio of two to three has five parts: divide by five before you multiply.",
    "When liquids are poured together, add what they hold, not their percentages.",
    "People who leave, items that break and money that is spent come off; gifts and finds are added.",
    "Keep the children's names as they are written, and do not mix up who has what.",
    "If a number in the question is not needed, leave it; questions here hold such numbers on purpose.",
    "When a rate changes on the way, work each part out on its own and add the parts at the end.",
    "When someone gives a part away and then a part of the rest, the second part is of the rest alone.",
    "If the count of legs, wheels or corners is asked for, multiply for each kind before you add the kinds.",
    "Give the answer as a number alone, without its unit, thousands separators or a full stop.",
]

TOOLS = [
    ("calculator", "Evaluates an arithmetic expression exactly, with fractions.", {
        "expression": "The expression, with + - * / and brackets, such as (3 + 4) * 12",
        "as_fraction": "Whether the result is wanted as a fraction instead of a decimal number",
    }),
    ("convert_unit", "Converts an amount from one unit into another unit of the same kind.", {
        "amount": "The amount in the first unit",
        "from_unit": "The unit that the amount is in: cm, m, km, inch, foot, mile, g, kg, pound, s, min, h",
        "to_unit": "The unit that is wanted, of the same kind as the first",
    }),
    ("calendar", "Says on which weekday a date falls, and how many days lie between two dates.", {
        "first_date": "The first date, as year, month and day: 2026-03-01",
        "second_date": "The second date, in the same form; left out when only the weekday is wanted",
    }),
    ("look_up_price", "Says what an article costs in the shop of the question's town.", {
        "article": "Name of the article, in the singular",
        "quantity": "How many of them, as a whole number; a dozen costs less than twelve times one",
    }),
]


def system_prompt():
    """Some 1,500 tokens. SmolLM2's template has no place for tools, so they stand in the text."""
    lines = ["You are the mathematics tutor of a primary school. These are the school's rules for tutors."]
    lines += [f"{number}. {rule}" for number, rule in enumerate(RULES, 1)]
    lines.append("You have these tools:")
    for name, description, parameters in TOOLS:
        properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
        lines.append(json.dumps({"type": "function", "function": {
            "name": name, "description": description, "strict": True,
            "parameters": {"type": "object", "properties": properties,
                           "required": list(parameters), "additionalProperties": False}}}))
    return "\n".join(lines)


def make_prefix(out):
    system = {"role": "system", "content": system_prompt()}
    with out.open("w", encoding="utf-8") as file:
        for line in GSM8K.read_text(encoding="utf-8").splitlines():
            messages = [m for m in json.loads(line)["messages"] if m["role"] != "system"]
            question, answer = messages[0], messages[-1]
            number = answer["content"].rsplit("####", 1)[-1].strip()
            short = {"role": "assistant", "content": number}
            file.write(json.dumps({"messages": [system, question, short]}) + "\n")


def main():
    models, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "smollm2" / "tokenizer.json").exists():
        make_smollm2(models, out / "smollm2")
    lines = GSM8K.read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "gsm8k-40.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    make_prefix(out / "prefix.jsonl")
    for name, shape in SIZES.items():
        if not (out / name / "config.json").exists():
            make_random(out / "smollm2", out / name, shape)


if __name__ == "__main__":
    main()
