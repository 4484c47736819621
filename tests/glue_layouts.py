"""Three examples of each GLUE task, made up here, in the columns of the official files."""

from dataclasses import dataclass

TREES = "sentence1_binary_parse | sentence2_binary_parse | sentence1_parse | sentence2_parse"


@dataclass(frozen=True)
class Official:
    """One task as its official files lay it out: headers, and the cells of a row around its texts and its label."""

    header: str
    row: str
    """With {0} and {1} for the texts, {label} and {index}; ' | ' stands for a tab."""
    test_header: str
    test_row: str
    labels: tuple[str, ...]
    numbers: tuple[float, ...]
    has_index: bool = True

    def file(self, split: str) -> str:
        is_test = split.startswith("test")
        header, row = (self.test_header, self.test_row) if is_test else (self.header, self.row)
        rows = [
            row.format(FIRST[place], SECOND[place], label=label, index=40 + place)
            for place, label in enumerate(self.labels)
        ]
        return "".join(line.replace(" | ", "\t") + "\n" for line in [header] * bool(header) + rows)


# A lone quotation mark, one at each end of a row, and characters that other readers end a line or a cell at.
FIRST = ('"It rained.', 'Snow, "he said', "a\u2028b\x0bc\x85d")
SECOND = ("Wet streets.", 'It is cold."', " 'n' ")
NUMBERS = (("1", "0", "1"), (1, 0, 1))
ENTAILS = (("not_entailment", "entailment", "not_entailment"), (1, 0, 1))

OFFICIAL = {
    "CoLA": Official("", "x9 | {label} | * | {0}", "index | sentence", "{index} | {0}", *NUMBERS, has_index=False),
    "SST-2": Official(
        "sentence | label", "{0} | {label}", "index | sentence", "{index} | {0}", *NUMBERS, has_index=False
    ),
    "MRPC": Official(
        "\ufeffQuality | #1 ID | #2 ID | #1 String | #2 String",
        "{label} | 11 | 12 | {0} | {1}",
        "index | #1 ID | #2 ID | #1 String | #2 String",
        "{index} | 11 | 12 | {0} | {1}",
        *NUMBERS,
        has_index=False,
    ),
    "STS-B": Official(
        "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 | score",
        "{index} | news | wire | 2015 | 0008 | none | none | {0} | {1} | {label}",
        "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2",
        "{index} | news | wire | 2015 | 0008 | none | none | {0} | {1}",
        ("0.000", "5.000", "2.750"),
        (0, 5, 2.75),
    ),
    "QQP": Official(
        "id | qid1 | qid2 | question1 | question2 | is_duplicate",
        "{index} | 1 | 2 | {0} | {1} | {label}",
        "id | question1 | question2",
        "{index} | {0} | {1}",
        *NUMBERS,
    ),
    "MNLI": Official(
        f"index | promptID | pairID | genre | {TREES} | sentence1 | sentence2 | label1 | gold_label",
        "{index} | 5 | 5n | letters | ( a ) | ( b ) | (X a) | (X b) | {0} | {1} | neutral | {label}",
        f"index | promptID | pairID | genre | {TREES} | sentence1 | sentence2",
        "{index} | 5 | 5n | letters | ( a ) | ( b ) | (X a) | (X b) | {0} | {1}",
        ("neutral", "contradiction", "entailment"),
        (1, 2, 0),
    ),
    "QNLI": Official(
        "index | question | sentence | label", "{index} | {0} | {1} | {label}",
        "index | question | sentence", "{index} | {0} | {1}", *ENTAILS,
    ),
    "RTE": Official(
        "index | sentence1 | sentence2 | label", "{index} | {0} | {1} | {label}",
        "index | sentence1 | sentence2", "{index} | {0} | {1}", *ENTAILS,
    ),
    "WNLI": Official(
        "index | sentence1 | sentence2 | label", "{index} | {0} | {1} | {label}",
        "index | sentence1 | sentence2", "{index} | {0} | {1}", *NUMBERS,
    ),
}  # fmt: skip
