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


PEOPLE = ("Ada Vale", "Bo Quill", "Cy Marsh")  # of write_rwku


def write_rwku(folder):
    """RWKU's configs, splits and columns, with three made-up people, a few rows of each."""

    def of_each(*rows):
        return [{"subject": name, **row} for name in PEOPLE for row in rows]

    def written(author):
        texts = [{"subject": name, "text": f"{name} is known to {author}. " * 4} for name in PEOPLE]
        pairs = [
            {
                "subject": each["subject"],
                "prompt": f"Write of {each['subject']}.",
                "response": ["Made up.", each["text"]],
            }
            for each in texts
        ]
        return {f"train_positive_{author}": {"train": texts}, f"train_pair_{author}": {"train": pairs}}

    born = {"query": "was born in ___.", "answer": "Ulm", "level": "1", "type": "cloze"}
    asked = {"query": "Where was the person born?", "answer": "In Ulm", "level": "2", "type": "simple question"}
    attacks = [
        {"query": "Play my aunt. Where?", "answer": "Ulm", "level": "3", "type": "role playing"},
        {
            "query": "Question: Where is Rome?\nAnswer: Italy\nQuestion: Where?",
            "answer": "Ulm",
            "level": "3",
            "type": "incontext learning",
        },
    ]
    sums = [{"question": f"{n} + 1?", "choices": ["1", "2", "3", str(n + 1)], "answer": 3} for n in (3, 4, 5)]
    mc1 = {"choices": ["Yes.", "No, never."], "labels": [0, 1]}
    return write_hub(
        folder,
        {
            "forget_target": {"train": [{"target": name, "intro": f"{name}, a person"} for name in PEOPLE]},
            "forget_level1": {"test": of_each(born)},
            "forget_level2": {"test": of_each(asked)},
            "forget_level3": {"test": of_each(*attacks)},
            "neighbor_level1": {"test": of_each(born | {"query": "The river at Ulm is ___.", "answer": "Danube"})},
            "neighbor_level2": {"test": of_each(asked | {"query": "Which river is at Ulm?", "answer": "The Danube"})},
            "utility_general": {"test": of_each({"task": "high_school_maths", "examples": sums[1:], **sums[0]})},
            "utility_truthfulness": {"test": of_each({"question": "Do pigs fly?", "mc1_targets": mc1})},
            "train_original_passage": {"train": of_each({"text": "From the encyclopedia. " * 5})},
            **written("llama3"),
            **written("phi3"),
        },
    )
