"""Weights of eight bits in a graph of ONNX."""

from __future__ import annotations

import tempfile
from pathlib import Path

from refiner_cli.core.towers.library_messages import quiet_libraries


def graph_files(graph: Path) -> list[Path]:
    """A graph, and the file ``NAME.data`` where it lies beside it: a large graph has its weights there."""
    return [file for file in (graph, graph.with_name(f"{graph.name}.data")) if file.is_file()]


def quantize(file: Path) -> None:
    """Store the weights of a graph in eight bits, in place.

    The new graph has a file of weights if the old one had; what the old one had under its name is gone.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    tensors = onnx.load(str(file), load_external_data=False).graph.initializer
    large = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        made = Path(place) / file.name
        with quiet_libraries():
            quantize_dynamic(
                str(file), str(made), weight_type=QuantType.QInt8, use_external_data_format=large
            )
        for left in graph_files(file):
            left.unlink()
        for new in graph_files(made):
            new.rename(file.with_name(new.name))
