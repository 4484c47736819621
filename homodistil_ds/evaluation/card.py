"""The README.md of a saved student: a Hugging Face model card. It returns text and writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from homodistil_ds.evaluation.report import LOADERS, Report, duration_text

# Kind of language model -> what the hub calls it.
PIPELINES = {"masked": "fill-mask", "causal": "text-generation", "denoising": "text2text-generation"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(*, base_model: str, license: str | None, corpus: Sequence[str], command: str, report: Report) -> str:
    """YAML front matter and a short page.

    `base_model` is the teacher as the user named it; it enters the front matter only if it reads as a hub name.
    `license` is a hub licence identifier such as apache-2.0, or None to leave it out.
    """
    student, teacher = report.student, report.teacher
    if teacher:
        source = f"Pruned and distilled from `{base_model}` with the method `{report.method}` of homodistil_ds."
        share = f", {student.parameters / teacher.parameters:.1%} of the teacher's {teacher.parameters:,}"
        loss = f" (teacher: {teacher.heldout_loss:.4f})"
    else:
        source, share, loss = f"Trained without a teacher, with the method `{report.method}` of homodistil_ds.", "", ""
    results = [
        f"- Parameters: {student.parameters:,}{share}; {student.parameters_without_embeddings:,} without embeddings",
        f"- Held-out {report.language_model}-language-model loss: {student.heldout_loss:.4f} nats{loss}",
    ]
    if teacher:
        results.append(f"- KL from the teacher at the predicted positions: {student.discrepancy_kl:.4f} nats")
    widths = [
        "| width | student | teacher |" if teacher else "| width | student |",
        "|:--|--:|" + "--:|" * bool(teacher),
    ]
    for name, size in student.widths.items():
        before = f" {teacher.widths.get(name, 0):,} |" if teacher else ""
        widths.append(f"| {name} | {size:,} |{before}")
    parts = [
        _front_matter(base_model if teacher else None, license, PIPELINES[report.language_model]),
        f"# {report.name}",
        f"{source} It is a plain `transformers` model; loading it needs no other package.",
        "## Load",
        _SNIPPET.format(loader=LOADERS[report.language_model]),
        "## Results",
        "\n".join(results),
        "\n".join(widths),
        "## Training",
        "\n".join(
            [
                f"- Corpus: {', '.join(f'`{name}`' for name in corpus)}",
                f"- {report.steps:,} optimizer steps, {report.tokens:,} tokens; the whole run took "
                f"{duration_text(report.wall_seconds)} on {report.world_size} process(es), {report.precision}, "
                f"seed {report.seed}",
                f"- Versions: {', '.join(f'{name} {version}' for name, version in report.versions.items())}",
            ]
        ),
        f"```bash\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


_SNIPPET = """```python
from transformers import {loader}, AutoTokenizer

folder = "."  # this folder, or its hub name
model = {loader}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def _front_matter(teacher: str | None, license: str | None, pipeline: str) -> str:
    # A JSON string is a YAML string, which spares a YAML writer.
    lines = ["---", "library_name: transformers", f"pipeline_tag: {pipeline}"]
    if license:
        lines.append(f"license: {json.dumps(license)}")
    if teacher and is_hub_name(teacher):
        lines.append(f"base_model: {json.dumps(teacher)}")
    tags = ["homodistil", "distilled", "pruned"] if teacher else ["homodistil"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a model on the hub: `name` or `owner/name`, not a folder here and not the built-in one."""
    return name != "builtin" and HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def export_section(dtype: str, rounding: float, onnx_inputs: Sequence[str]) -> str:
    """What an export adds to the card. `rounding` is what the number format did to the logits, 0 for nothing;
    `onnx_inputs` names the inputs of onnx/model.onnx, none if there is no such file."""
    lines = [f"- Weights in {dtype}; transformers alone loads them and computes what the exported model did."]
    if rounding:
        lines.append(f"- Rounding to {dtype} moved the logits by {rounding:.1e} of the largest one.")
    parts = ["## Export", "\n".join(lines)]
    if onnx_inputs:
        feeds = ", ".join(f'"{name}": {name}' for name in onnx_inputs)
        parts.append(
            "`onnx/model.onnx` computes the same in float32, for any batch size and sequence length (int64 inputs):"
        )
        parts.append(
            f'```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")\n'
            f'logits = session.run(["logits"], {{{feeds}}})[0]\n```'
        )
    return "\n\n".join(parts) + "\n"
