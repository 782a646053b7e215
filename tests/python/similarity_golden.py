"""Writes tests/data/similarity.json: text similarities by the libraries that define them.

Usage: similarity_golden.py > tests/data/similarity.json, with nltk, rouge-score and rapidfuzz.
"""

import json

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.gleu_score import sentence_gleu
from rapidfuzz import fuzz
from rouge_score import rouge_scorer

CASES = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat sat on the mat", "the cat is on the mat"),
    ("the the the the the the the", "the cat is on the mat"),
    ("a cat", "a dog"),
    ("a", "a"),
    ("a", "b"),
    ("hello", "hello world, how are you today?"),
    ("It is a guide to action which ensures that the military always obeys the commands of the party",
     "It is a guide to action that ensures that the military will forever heed Party commands"),
    ("Paris is the capital of France.", "The capital of France is Paris."),
    ("police killed the gunman", "the gunman kill police"),
    ("naïve café – 3,5 km", "Naive cafe - 3.5 km"),
    ("日本語 の 文", "日本語 の 文章"),
    ("one two three four five six seven eight", "eight seven six five four three two one"),
    ("42", "42.0"),
    ("a b c d e f g h", "a b c d x f g h"),
    ("x " * 40 + "end", "x " * 30 + "stop"),
    ("{\"a\": 1, \"b\": [2, 3]}", "{\"b\": [2, 3], \"a\": 1}"),
]

rouges = [f"rouge{n}" for n in range(1, 6)] + ["rougeL"]
scorer = rouge_scorer.RougeScorer(rouges, use_stemmer=False)
golden = []
for given, reference in CASES:
    scores = scorer.score(reference, given)
    smoothing = SmoothingFunction().method3
    golden.append({
        "input": given,
        "reference": reference,
        "fuzzy_match": fuzz.ratio(given, reference) / 100,
        "bleu": sentence_bleu(
            [reference.split()], given.split(), smoothing_function=smoothing, auto_reweigh=True
        ),
        "gleu": sentence_gleu([reference.split()], given.split()),
        **{f"rouge_{n}": scores[f"rouge{n}"].fmeasure for n in range(1, 6)},
        "rouge_l": scores["rougeL"].fmeasure,
    })
print(json.dumps(golden, indent=1, ensure_ascii=False))
