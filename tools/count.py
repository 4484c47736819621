"""Print the parameters of the presets' students, from the width table alone; nothing is downloaded or built.

python tools/count.py                      # every HomoBERT preset, from BERT-base
"""

import argparse

from transformers import BertConfig

from homodistil_ds.models.families import plan_for, target_widths
from homodistil_ds.models.width import count
from homodistil_ds.presets import PRESETS

BASE_NAME = "google-bert/bert-base-uncased"
BERT_BASE = BertConfig()  # 12 layers, hidden 768, 12 heads, ffn 3072, 30,522 word pieces


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.parse_args()
    plan = plan_for(BERT_BASE)
    print(f"{'millions':18} {'widths':>14} {'word emb.':>10} {'matrices':>9} {'encoder':>8} {'total':>8}")
    shapes = {"bert-base": plan.full}
    for name, preset in PRESETS.items():
        if name.startswith("homobert_") and preset().teacher == BASE_NAME:
            student = preset().student
            shapes[name] = target_widths(
                plan, student.hidden_size, student.intermediate_size, student.num_attention_heads
            )
    for name, widths in shapes.items():
        counted = count(plan, widths)
        figures = (counted.word_embedding, counted.matrices, counted.matrices + counted.vectors, counted.total)
        word, matrices, encoder, total = (f"{figure / 1e6:.2f}" for figure in figures)
        print(f"{name:18} {widths!s:>14} {word:>10} {matrices:>9} {encoder:>8} {total:>8}")


if __name__ == "__main__":
    main()
