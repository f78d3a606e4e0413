"""Makes cases.json: what transformers 5.24 makes of conversations with the templates in this folder.

    pip install transformers jinja2
    python make_cases.py

The templates are written for this project, in the manner of those that models are published with.
"""

import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = Path(__file__).parent
TURNS = ["What is 2 + 2?", "4", "  And then?\n", "\n\n5.  ", "日本語 🦀 é", "<think>\nHm.\n</think>\n\nYes."]


def conversation(count, system=None):
    """The first turns, after a system's message where there is one."""
    turns = [("user", "assistant")[i % 2] for i in range(count)]
    messages = [{"role": role, "content": text} for role, text in zip(turns, TURNS)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


CONVERSATIONS = [
    conversation(1), conversation(2), conversation(3), conversation(4), conversation(5),
    conversation(6), conversation(1, "Be kind. "), conversation(3, "Be kind."),
    conversation(6, "Be\nkind."), conversation(2)[1:], conversation(1) * 2,
    [{"role": "user", "content": ""}], [{"role": "user", "content": "a <|im_end|> b </s>"}],
]


def main():
    expected = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        rows = []
        for messages in CONVERSATIONS:
            for prompt in [True, False]:
                try:
                    texts, _ = render_jinja_template(
                        conversations=[messages], chat_template=path.read_text(),
                        add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>",
                    )
                    rows.append({"text": texts[0]})
                except TemplateError as error:
                    rows.append({"error": str(error)})
        expected[path.stem] = rows
    cases = {"conversations": CONVERSATIONS, "expected": expected}
    text = json.dumps(cases, indent=0, ensure_ascii=False)
    (FOLDER / "cases.json").write_text(text + "\n")


main()
