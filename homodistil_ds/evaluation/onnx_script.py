"""Write a saved folder as ONNX, and ask ONNX models for logits. Run as a script, so that what they say stays in there.

    python -I onnx_script.py FOLDER EXAMPLE.pt MODEL.onnx        EXAMPLE: name -> int64 [B, L], B and L above 1
    python -I onnx_script.py --run MODEL.onnx INPUTS.pt OUT.pt   INPUTS, OUT: as of plain.py

It imports nothing of this project.
"""

import sys

import onnxruntime
import torch
import transformers


def main(arguments: list[str]) -> None:
    if arguments[0] == "--run":
        saved, inputs_path, out_path = arguments[1:]
        torch.save(run(saved, torch.load(inputs_path, weights_only=True)), out_path)
    else:
        folder, example_path, target = arguments
        write(folder, torch.load(example_path, weights_only=True), target)


def write(folder: str, example: dict[str, torch.Tensor], target: str) -> None:
    """In float32, with a free batch size and sequence length."""
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(folder, use_safetensors=True).float().eval()
    model.config.use_cache = False
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        model,
        kwargs=example,
        dynamo=True,
        dynamic_shapes=dict.fromkeys(example, free),
        input_names=list(example),
        output_names=["logits"],
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    program.save(target)  # weights above 1.5 GB go to a file beside it


def run(saved: str, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(saved, providers=["CPUExecutionProvider"])
    feeds = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]
    return [torch.from_numpy(session.run(["logits"], feed)[0]) for feed in feeds]


if __name__ == "__main__":
    main(sys.argv[1:])
