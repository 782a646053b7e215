"""Continues token sequences with llama.cpp, the likeliest token each time.

Usage: llama_cpp.py MODEL_GGUF LORA_GGUF|- REQUESTS_JSON ANSWERS_JSON

REQUESTS_JSON holds {"prompts": [{"tokens": [...], "most": N}, ...]}; ANSWERS_JSON gets {"continued":
[...]}, what llama.cpp's server replies to each.
"""

import json
import sys
import urllib.request

import xllamacpp

model, lora, requests, answers = sys.argv[1:]
with open(requests) as file:
    asked = json.load(file)

params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = 512
params.n_parallel = 1
params.warmup = False
# Keys and values in 32 bits and plain attention: what differs from hone is the arithmetic alone.
params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if lora != "-":
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
server = xllamacpp.Server(params)


def complete(prompt, most):
    body = {
        "prompt": prompt,
        "n_predict": most,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "n_probs": 1,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


continued = [complete(one["tokens"], one["most"]) for one in asked["prompts"]]
with open(answers, "w") as file:
    json.dump({"continued": continued}, file)
