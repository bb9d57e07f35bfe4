#!/usr/bin/env python3
"""Compares Quarry's tokenizer with the `tokenizers` package, id by id.

Trains tokenizers of every supported kind on a text full of odd Unicode, then encodes slices of it
with both. Skipped when the package is not installed. Everything is seeded: two runs do the same.

With --record FILE it writes what the package says on small tokenizers of all kinds instead: the
golden file of the C test, which needs no package.
"""
import json
import os
import random
import subprocess
import sys
import unicodedata

try:
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                            pre_tokenizers, processors, trainers)
except ImportError:
    print("ok 1 - comparison with the tokenizers package # SKIP the package is not installed")
    print("1..1")
    sys.exit(0)


def letter(cp):
    return len(pre_tokenizers.Split(Regex(r"\p{L}"), "isolated").pre_tokenize_str("." + chr(cp) + ".")) == 3


# U+105C0 came with Unicode 16, U+16EA0 with 17: Quarry follows the releases in between.
if not letter(0x105C0) or letter(0x16EA0):
    print("ok 1 - comparison with the tokenizers package # SKIP the package is not one with Unicode 16")
    print("1..1")
    sys.exit(0)

TOOL = os.path.join(os.environ["QUARRY_BUILD"], "tools", "tokenize")
WORK = os.environ.get("TMPDIR", "/tmp")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
          r"|\s*[\r\n]|\s+(?!\S)|\s")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m"
         r"|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re"
         r"|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
PUNCT = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
         r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Corners of the dialect: what the two engines would read differently.
CORNERS = [r"a{1,3}+", r"a{2}?b", r"a{,2}", r"a{x", r"^\w", r"\w$", r"a**", r"[a\-z]+", r"\h+", r"[^\S\n]+",
           r".+", r"x*", r"(?<=a)[bs]", r"\d+(?=\s)", r"\D\d", r"\S+\s", r"\W+", r"(?i:k|s)+",
           r"(?:ab|a)(?!b)", r"(?>a+)b?", r"\u0061\x{62}", r"\p{^L}+", r"\P{Nd}\p{Nd}", r"(s)(t)|\z", r"\A.",
           r"[\s\p{Zs}\p{Sc}]+", r"\p{Mn}", r"a??b", r"[a-cx-z&]+", r"a]|}", "é+|[à-ü]", r"\x{e9}|\u00eA", r"(?-i:s)(?i:S)\Z"]


# --- texts ------------------------------------------------------------------------------------

WORDS = """the quick Brown fox JUMPS over a lazy dog; it's we'LL they're I'd don't WON'T can't isn't
 antidisestablishmentarianism x y z foo_bar fooBar HTTPServer 3.14159 1,234,567 0x7fff 2nd
 naïve café résumé Ångström coöperate straße Straſse Maſt ſ 'ſ 'S 'ſt K k Å ﬁre ﬂow ﬀ ﬃ ﬆop ŉ ǰ İstanbul ıI ς
 Σίσυφος ΣΊΣΥΦΟΣ привет МОСКВА ёжик שלום עוֹלָם مرحبا بالعالم ۱۲۳ ١٢٣ नमस्ते दुनिया १२३ স্বাগতম வணக்கம் ಕನ್ನಡ สวัสดี
 ສະບາຍດີ မြန်မာ ខ្មែរ 中文字符 漢字 日本語 ひらがな カタカナ ｶﾀｶﾅ ﾞ 한국어 각 각 \uac00\u11a7 ＡＢＣ ａｂｃ １２３ ｟｠ 𝔘𝔫𝔦 𝟙𝟚 Ⅷ ½ ² ³ ¹ ① ㊗ ㍿ ㋿ ㎏ ﷺ ﷽
 👍 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☕️ ❤️‍🔥 🫠 🪿 e\u0301 a\u0323\u0307 a\u0307\u0323 q\u0307\u0323 \u0344 o\u031b\u0323 \u1100\u1161\u11a8
 \u0915\u093c \u09c7\u09be \u0b47\u0b56 \u1e9b\u0323 \U0001d15e \U00011935\U00011930 \u0061\u08d3\u0301 \u0061\u1df6\u0327 \u2126 \u212b
 \u212a \u037e \u0387 \u1fef \u2000 \u2329 \uf900 \ufb1d \U0002f800 zero\u200bwidth join\u200djoin soft\u00adhy
 \u180e mongolian \ufeffbom \u2028 \u2029 \u0085 \u00a0 \u3000 \u202f \u205f \u1680 \x0b \x0c \x1c \x1f \x7f \x01 \x00
 \ud7ff \ue000 \ufffd \ufffe \U0010ffff \U00031350 \U0001e030 \U00010d40 \u1c89 \ua7cb \U000116d0 \U0001fae8 \U000105c9 \U00011de0 7\U00016ff4
 <s> </s> <unk> <0x0A> <|x|> ▁under▁score ▁ ▁▁ http://a.b/c?d=e&f#g user@host $12.50 €7 50% a-b—c…d “q” ‘r’ «s» !? ... --- ___
 {"k": [1, 2.5e-3, null]} if(x<=0){return~y;} \\n \\t C:\\dir \t \r\n \n \n\n \n\n\n""".split(" ")
SPACES = [" "] * 30 + ["  ", "   ", " " * 9, "\n", "\n\n", " \n ", "\r\n", "\t", " \t ", "\u00a0", "\u3000",
                       "\u2003", "", "", "'", "\u200d", "\n" * 5, " " * 40]


def odd_text(rng, count):
    out = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.8:
            word = rng.choice(WORDS)
        elif kind < 0.9:
            word = "".join(chr(rng.choice(POINTS)) for _ in range(rng.randint(1, 6)))
        else:
            word = "".join(rng.choice("ab'sStl 1\nſß.éK<") for _ in range(rng.randint(1, 12)))
        out.append(word + rng.choice(SPACES))
    return "".join(out)


def all_points():
    """Code points at which something changes, and everything common."""
    points, before = [], None
    for cp in range(0x110000):
        if 0xD800 <= cp <= 0xDFFF:
            continue
        c = chr(cp)
        what = (unicodedata.category(c), unicodedata.combining(c), bool(unicodedata.decomposition(c)))
        if cp < 0x600 or what != before or cp % 997 == 0:
            points.append(cp)
            if cp and not 0xD800 <= cp - 1 <= 0xDFFF:
                points.append(cp - 1)
        before = what
    return sorted(set(points))


POINTS = all_points()


def samples(seed, count):
    """Slices of one odd text, short ones mostly, and each code point in a few surroundings."""
    rng = random.Random(seed)
    text = odd_text(rng, 4000)
    out = ["", " ", "\n", "▁", "a"]
    for _ in range(count):
        start = rng.randrange(len(text))
        out.append(text[start:start + rng.choice([1, 2, 3, 5, 8, 20, 60, 200, 1500])])
    points = POINTS[:]
    rng.shuffle(points)
    for i in range(0, len(points), 60):
        around = rng.choice(["{0}", "a{0}b", " {0} ", "'{0}", "1{0}2", "\n{0}\n", "{0}{0}a", "A{0}\u0301 "])
        out.append("".join(around.format(chr(p)) for p in points[i:i + 60]))
    return out


# --- tokenizers -------------------------------------------------------------------------------

CORPUS = odd_text(random.Random(1), 12000)
TRAIN = [CORPUS[i:i + 4000] for i in range(0, len(CORPUS), 4000)]
FLAGS = [
    AddedToken("<|start|>", special=True),
    AddedToken("<|end|>", special=True, lstrip=True, rstrip=True),
    AddedToken("<|e", special=True),
    AddedToken("fox", normalized=False, single_word=True),
    AddedToken("café", normalized=True),
    AddedToken("Ångström", normalized=True, single_word=True),
    AddedToken("  ", normalized=False),
    AddedToken("    ", normalized=False),
    AddedToken("lazy", normalized=True, lstrip=True),
    AddedToken("dog", normalized=False, rstrip=True),
    AddedToken("ab", normalized=False, single_word=True, lstrip=True, rstrip=True),
    AddedToken("中文", normalized=True, rstrip=True),
    AddedToken("'s", normalized=False),
]
ADDED_WORDS = ["<|start|>", "<|end|>", " <|end|>\u3000\n", "<|e", "<|en", "fox", "foxes", "_fox", "fox\u0301", "café",
               "cafe\u0301", "Ångström", "  ", "   ", "     ", "lazy", " lazy", "dog", "dog\u2003 ", "ab", " ab ",
               "aab", "中文", "中文 ", "'s", "x", "é", "²ab", "\u200dab", "Ⓐab", "ab\u0300"]


def added_samples(seed, count):
    rng = random.Random(seed)
    words = ADDED_WORDS + WORDS
    return ["".join(rng.choice(ADDED_WORDS if rng.random() < 0.6 else words) + rng.choice(["", "", " "])
                    for _ in range(rng.randint(1, 12))) for _ in range(count)]


SMALL = "--record" in sys.argv


def train(tok, size=1500, **more):
    if SMALL:
        size = min(size, 262)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **more)
    tok.train_from_iterator(TRAIN, trainer)
    return tok


def byte_level(pre, normalizer=None, added=(), size=1500):
    tok = Tokenizer(models.BPE())
    if normalizer is not None:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    train(tok, size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.add_tokens(list(added))
    return tok


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def bytes_stage(prefix=False, regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def template(tok, bos, eos=None):
    ids = {"bos": tok.token_to_id(bos), "eos": tok.token_to_id(eos or bos)}
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A" + (f" {eos}" if eos else ""), pair=f"{bos} $A {bos} $B",
                                      special_tokens=[(bos, ids["bos"])] + ([(eos, ids["eos"])] if eos else []))])
    return tok


def llama2(pre=None, normalizer=True, inner=True, **options):
    settings = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    settings.update(options)
    tok = Tokenizer(models.BPE(**settings))
    if normalizer:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if pre is not None:
        tok.pre_tokenizer = pre
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    # Words are what is trained on: one text is one piece here. Some hold "▁" inside, so that merges
    # reach across words, unless that is not wanted.
    words = [w for t in TRAIN[:8] for w in t.replace("\n", " \n ").split(" ") if w and "\0" not in w]
    words = [w for w in words if inner or "▁" not in w.lstrip("▁")]
    trainer = trainers.BpeTrainer(vocab_size=400 if SMALL else 1400, special_tokens=special,
                                  show_progress=False, limit_alphabet=60 if SMALL else 300)
    tok.train_from_iterator(words, trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 3]
    return Tokenizer.from_str(json.dumps(data))


def kinds():
    """(name, tokenizer, texts); a text list of None stands for the ordinary samples."""
    sequence = pre_tokenizers.Sequence
    llama3 = byte_level(sequence([split(LLAMA3), bytes_stage()]), added=FLAGS)
    yield "llama-3 split, added tokens, template", template(llama3, "<|start|>", "<|end|>"), None
    data = json.loads(llama3.to_str())
    data["model"]["ignore_merges"] = True
    yield "llama-3 split with ignore_merges", Tokenizer.from_str(json.dumps(data)), None
    yield "qwen split, NFC", byte_level(sequence([split(QWEN2), bytes_stage()]), normalizers.NFC(), FLAGS), None
    yield "gpt-2", byte_level(bytes_stage(regex=True), added=FLAGS), None
    yield "gpt-2 with a space in front", byte_level(bytes_stage(True, True), added=FLAGS), None
    for form in ("NFD", "NFKC", "NFKD"):
        yield form, byte_level(sequence([split(LLAMA3), bytes_stage()]), getattr(normalizers, form)(),
                               FLAGS, 700), None
    yield "llama-2", llama2(), None
    yield "llama-2, no merge across words", llama2(inner=False), None
    tok = llama2()
    tok.add_tokens(FLAGS)
    yield "llama-2 with added tokens", template(tok, "<s>"), None
    yield "llama-2, metaspace first, unsplit", llama2(
        pre_tokenizers.Metaspace("▁", "first", False), False), None
    yield "llama-2, metaspace always, split", llama2(pre_tokenizers.Metaspace("▁", "always", True), False), None
    yield "llama-2, metaspace never", llama2(pre_tokenizers.Metaspace("▁", "never", True), False), None
    yield "unknown token, not fused", llama2(byte_fallback=False, fuse_unk=False), None
    yield "unknown token, fused", llama2(byte_fallback=False, fuse_unk=True), None
    yield "unknown characters dropped", llama2(byte_fallback=False, unk_token=None), None
    yield "unknown characters dropped, no merge across words", llama2(
        inner=False, byte_fallback=False, unk_token=None), None
    yield "unknown token, fused, no merge across words", llama2(inner=False, byte_fallback=False), None
    odd = json.loads(llama2(inner=False, byte_fallback=False).to_str())
    odd["model"]["unk_token"] = "▁"
    yield "unknown token that is the start of a word", Tokenizer.from_str(json.dumps(odd)), None
    holes = json.loads(llama2().to_str())
    for byte in (0xCC, 0xF0, 0x0B):
        del holes["model"]["vocab"][f"<0x{byte:02X}>"]
    yield "bytes missing", Tokenizer.from_str(json.dumps(holes)), None
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            stages = sequence([split(r"\p{L}+|\s", behavior, invert), bytes_stage(True)])
            yield f"split {behavior}, invert {invert}", byte_level(stages, size=400), None
    yield "digits", byte_level(sequence([pre_tokenizers.Digits(False), bytes_stage(True)]), size=400), None
    yield "single digits", byte_level(sequence([pre_tokenizers.Digits(True), bytes_stage(True)]), size=400), None
    yield "literal split", byte_level(sequence([pre_tokenizers.Split("s", "removed"), bytes_stage(True)]),
                                      size=400), None
    yield "replace by regex", byte_level(bytes_stage(True), normalizers.Sequence([
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Replace("ss", "ß"), normalizers.NFC()]),
        FLAGS, 400), None
    for name, pattern in (("llama-3", LLAMA3), ("qwen", QWEN2), ("cl100k", CL100K), ("o200k", O200K),
                          ("CJK", CJK), ("punctuation", PUNCT)):
        # A space in front of every piece makes each boundary visible in the ids.
        yield f"boundaries: {name}", byte_level(sequence([split(pattern), bytes_stage(True)]), size=300), None
    for pattern in CORNERS:
        yield f"boundaries: {pattern!r}", byte_level(sequence([split(pattern), bytes_stage(True)]), size=258), \
            samples(7, 150)


# --- comparison -------------------------------------------------------------------------------

def quarry(path, asked):
    sent = b"".join(b"%d %d\n" % (len(text), special) + text for text, special in asked)
    run = subprocess.run([TOOL, path], input=sent, capture_output=True)
    if run.returncode:
        return [run.stderr.decode()] * len(asked)
    lines = run.stdout.decode().split("\n")[:-1]
    return [line if line.startswith("!") else [int(i) for i in line.split()] for line in lines]


def compare(tok, texts):
    """None, or what differs first."""
    path = os.path.join(WORK, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as f:
        f.write(tok.to_str())
    asked = [(t.encode("utf-8"), s) for t in texts for s in (1, 0)]
    got = quarry(path, asked)
    want = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=True)]
    plain = [e.ids for e in tok.encode_batch_fast(texts, add_special_tokens=False)]
    expected = [ids for both in zip(want, plain) for ids in both]
    if len(got) != len(expected):
        return f"{len(got)} answers for {len(expected)} texts"
    for (text, special), ours, theirs in zip(asked, got, expected):
        if ours != theirs:
            return f"text {text!r} special {special}\n#   quarry     {ours}\n#   tokenizers {theirs}"
    return None


def record(path):
    """One line for each kind: the tokenizer, some texts, their ids with and without special tokens."""
    with open(path, "w", encoding="utf-8") as f:
        for number, (name, tok, _) in enumerate(kinds()):
            rng = random.Random(number)
            texts = rng.sample([t for t in samples(number, 60) if "\0" not in t and 4 < len(t) < 90], 6)
            texts += added_samples(number, 3)
            texts = [t for t in texts if "\0" not in t]
            data = {k: v for k, v in json.loads(tok.to_str()).items() if v and k != "decoder"}
            line = {"name": name, "tokenizer": data, "texts": texts,
                    "ids": [tok.encode(t).ids for t in texts],
                    "ids_no_special": [tok.encode(t, add_special_tokens=False).ids for t in texts]}
            f.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    number = failed = 0
    for name, tok, texts in kinds():
        number += 1
        if texts is None:
            texts = samples(number, 500) + added_samples(number, 300)
        wrong = compare(tok, texts)
        print(("not ok" if wrong else "ok") + f" {number} - {name}: {len(texts)} texts", flush=True)
        if wrong:
            failed += 1
            print("# " + wrong[:3000], flush=True)
    print(f"1..{number}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(record(sys.argv[sys.argv.index("--record") + 1]) if SMALL else main())
