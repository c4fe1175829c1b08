"""Data sets on disk in the hub's layout: a README with its configs, and a file of rows for each split."""

import json

import yaml


def write_hub(folder, configs, parquet=False):
    """configs: {config: {split: rows}}; JSON lines, or parquet. Returns the folder's path as text."""
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            name = f"{config}-{split}.{'parquet' if parquet else 'jsonl'}"
            if parquet:
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
            else:
                (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append({"split": split, "path": name})
        described.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': described})}---\n")
    return str(folder)


def write_muse(folder, parquet=False):
    """MUSE's configs, splits and columns, a few rows of each."""

    def stories(*splits):
        return {split: [{"text": f"The {split} story number {index}. " * 9} for index in range(3)] for split in splits}

    def qa(name, count):
        return [{"question": f"What is {name} {index}?", "answer": f"the {name} {index}"} for index in range(count)]

    return write_hub(
        folder,
        {
            "raw": stories("forget", "retain1", "retain2"),
            "privleak": stories("forget", "retain", "holdout"),
            "scal": stories(*(f"forget_{fold}" for fold in (1, 2, 3, 4))),
            "sust": stories(*(f"forget_{fold}" for fold in (1, 2, 3, 4))),
            "verbmem": {"forget": [{"prompt": "The forget story", "gt": "number 0. The forget story number 0. " * 40}]},
            "knowmem": {
                "forget_qa": qa("forget", 3),
                "retain_qa": qa("retain", 2),
                "forget_qa_icl": qa("forget example", 2),
                "retain_qa_icl": qa("retain example", 1),
            },
        },
        parquet,
    )


def write_wmdp(folder):
    """Folders of WMDP's questions, corpora and MMLU, as options of the benchmark."""
    port = {"question": "Which tool lists open ports?", "choices": ["nmap", "sed", "tar", "awk"], "answer": 0}
    sign = {"question": " Which of the following signs?", "choices": ["ls", "cp", "gpg", "mv"], "answer": 2}
    sums = [{"question": f"{n} + 1?", "choices": ["1", "2", "3", str(n + 1)], "answer": 3} for n in range(3, 13)]
    return {
        "path": write_hub(
            folder / "wmdp", {f"wmdp-{each}": {"test": [port, sign]} for each in ("cyber", "bio", "chem")}
        ),
        "corpora": write_hub(
            folder / "corpora",
            {
                config: {"train": [{"text": f"A {config} text. " * 9} for _ in range(3)]}
                for config in ("cyber-forget-corpus", "cyber-retain-corpus", "bio-retain-corpus")
            },
        ),
        "mmlu": write_hub(
            folder / "mmlu", {"all": {"test": [each | {"subject": "high_school_maths"} for each in sums]}}, parquet=True
        ),
    }
