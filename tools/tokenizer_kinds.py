# SPDX-License-Identifier: Apache-2.0
"""Test text, and tokenizer.json files of every family, trained on it. Used by compare_tokenizers.py."""
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

SENTENCES = """
The quick brown fox jumps over the lazy dog, and doesn't look back. I'll say it's we're they've I'M HE'S don’t
Der schnelle braune Fuchs springt über den faulen Hund; Straße, Größe, ÜBUNG.
Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë au delà des îles.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¿añoraba? ¡Sí!
Съешь ещё этих мягких французских булок, да выпей чаю. Їжак ґанок
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΣΊΣΥΦΟΣ
Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň úpěl ďábelské ódy.
İstanbul'da ılık bir gün, ŞIK çığlık. Nguyễn Ngọc Ánh đã viết điều này.
הקליפה היא השכבה החיצונית של העץ. שָׁלוֹם עֲלֵיכֶם
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. یک متن فارسی می‌خواهم ۱۲۳۴
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले। क्षत्रिय १२३
তুমি কেমন আছো? தமிழ் மொழி அழகானது. ภาษาไทยไม่มีการเว้นวรรค ລາວ မြန်မာ ខ្មែរ አማርኛ
我能吞下玻璃而不伤身体。今天天气很好，我们去公园吧！「你好」、『世界』
色は匂へど散りぬるを我が世誰ぞ常ならむ。カタカナ・ひらがな、ﾊﾝｶｸ　全角スペース
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋㅋ 안녕
def main(argc: int) -> None:\n\tfor i in range(10):\n        print(f"{i:>5} {x[i]!r}")  # comment\n    return {'a': 1, "b": [2, 3]}
#include <vector>\nint main() { std::vector<int> v{1,2,3}; return v[0] != 0x7f ? a->b : *p++; }
SELECT * FROM t WHERE a >= 10 AND b <> 'x''y'; -- 2024-01-31T23:59:59Z
<html><body class="x">&nbsp;<!-- c --></body></html> https://example.com/a?b=c&d=%20e#f user@mail.org
3.14159 1,000,000 $12.50 10^-9 ½ ² ₃ Ⅷ ① 一二三 ٣٤٥ 1234567890123
""".strip().split("\n")

EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "🧑🏿‍🚀", "✨", "☃", "\ufe0f", "\u200d"]
MARKS = ["\u0301", "\u0323", "\u0308", "\u0345", "\u05bc", "\u0651", "\u093c", "\u3099", "\u20dd", "\u1171e",
         "\u0344", "\u0f71", "\U00011938", "\u1ab0", "\u07fd"]
CONTROL = ["\x00", "\x01", "\x07", "\x08", "\x0b", "\x0c", "\x1b", "\x1c", "\x7f", "\x85", "\xa0", "\xad", "\u180e",
           "\u200b", "\u200c", "\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\ufeff", "\ufffd", "\U000e0041"]
SPECIALS = ["<|endoftext|>", "</s>", "<s>", "<unk>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
            "<0x41>", "<0xE4>", "▁", "▁▁", "<mask>", "<tool>", "[INST]", "Ġ", "Ċ", "Day", "yesterday", "<|endoftext",
            "<b> ", "ÀB"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u3000", "\u00a0", "\u2003", " " * 7, "\n" * 5]


class TextSource:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.words = [w for s in SENTENCES for w in s.replace("\\n", "\n").replace("\\t", "\t").split(" ")]
        self.sentences = [s.replace("\\n", "\n").replace("\\t", "\t") for s in SENTENCES]

    def code_point(self):
        r = self.random
        low, high = r.choice([(0, 0x80), (0x80, 0x800), (0x800, 0x3000), (0x2000, 0x2100), (0x3000, 0xD800),
                              (0xE000, 0x10000), (0x10000, 0x20000), (0x1F000, 0x20000), (0x10000, 0x110000)])
        return chr(r.randrange(low, high))

    def segment(self):
        r = self.random
        kind = r.randrange(24)
        if kind < 6:
            return r.choice(self.words)
        if kind == 6:
            return r.choice(self.sentences)
        if kind == 7:
            return str(r.randrange(10 ** r.randrange(1, 12)))
        if kind == 8:
            return "".join(r.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(r.randrange(1, 6)))
        if kind == 9:
            return "".join(r.choice(EMOJI) for _ in range(r.randrange(1, 4)))
        if kind == 10:
            return "".join(r.choice("aeouAEOUシカ가ㄱα") + "".join(r.choice(MARKS) for _ in range(r.randrange(0, 4)))
                           for _ in range(r.randrange(1, 5)))
        if kind == 11:
            return "".join(r.choice(CONTROL) for _ in range(r.randrange(1, 4)))
        if kind == 12:
            return "".join(chr(r.randrange(0x4E00, 0x9FFF)) for _ in range(r.randrange(1, 6)))
        if kind == 13:
            return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 4)))
        if kind == 14:
            return r.choice([" ", "\n", "\t", "\u3000"]) * r.choice([1, 2, 3, 8, 31, 100])
        if kind in (15, 16):
            return "".join(self.code_point() for _ in range(r.randrange(1, 6)))
        if kind == 17:
            return bytes(r.randrange(256) for _ in range(r.randrange(1, 12))).decode("utf-8", errors="replace")
        if kind in (18, 19):
            return r.choice(SPECIALS)
        if kind == 20:
            return r.choice(["'s", "'S", "'ſ", "'t", "'T", "'re", "'RE", "'ve", "'LL", "'d", "'M", "’s", "'K"])
        if kind == 21:
            return r.choice(self.words).upper()
        if kind == 22:
            return r.choice("abcxyz") * r.choice([1, 2, 5, 30, 200])
        return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randrange(1, 15)))

    def line(self):
        r = self.random
        if r.randrange(50) == 0:
            return ""
        joiner = r.choice([" ", " ", " ", ""])
        return joiner.join(self.segment() for _ in range(r.choice([1, 1, 2, 2, 3, 4, 6, 9])))


def corpus():
    source = TextSource(1)
    return source.sentences * 3 + [" ".join(source.random.choice(source.words) for _ in range(12)) for _ in range(800)]


def train(tokenizer, vocab_size, alphabet=None, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet or [],
                                  special_tokens=options.pop("special_tokens", []), **options)
    tokenizer.train_from_iterator(corpus(), trainer)


def byte_level(pre_tokenizer, vocab_size, specials, normalizer=None, post=None, ignore_merges=False, first=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    train(tokenizer, vocab_size, pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(first))
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = post(tokenizer) if post else processors.ByteLevel(trim_offsets=False)
    return json.loads(tokenizer.to_str())


def split_then_bytes(*patterns):
    parts = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(parts + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bos_template(name):
    def make(tokenizer):
        template = processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1",
                                                 special_tokens=[(name, tokenizer.token_to_id(name))])
        return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return make


def sentencepiece(vocab_size, pre_tokenizer, normalizer, decoder, eos=False):
    """Llama-2's layout: <unk> <s> </s>, 256 byte tokens, then merged tokens, then characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    train(tokenizer, vocab_size)
    trained = json.loads(tokenizer.to_str())["model"]
    out = json.loads(Tokenizer(models.BPE()).to_str())
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    # Every third character is left out of the vocabulary, to exercise the byte tokens.
    letters = [t for t in trained["vocab"] if len(t) == 1]
    drop = set(letters[2::3]) - set("abcdefghijklmnopqrstuvwxyz▁")
    kept = sorted((t for t in trained["vocab"] if not drop & set(t)), key=trained["vocab"].get)
    tokens += kept
    known = set(tokens)
    merges = [m if isinstance(m, list) else m.split(" ") for m in trained["merges"]]
    merges = [m for m in merges if m[0] in known and m[1] in known and m[0] + m[1] in known]
    # A piece of text that is only spaces merges in the real models.
    for n in (2, 4, 8):
        if "▁" * n not in known:
            tokens.append("▁" * n)
            merges.append(["▁" * (n // 2), "▁" * (n // 2)])
    out["model"].update(vocab={t: k for k, t in enumerate(dict.fromkeys(tokens))}, merges=merges, unk_token="<unk>",
                        fuse_unk=True, byte_fallback=True)
    out["added_tokens"] = [{"id": k, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                            "normalized": False, "special": True} for k, t in enumerate(tokens[:3])]
    out["normalizer"], out["pre_tokenizer"], out["decoder"] = normalizer, pre_tokenizer, decoder
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    if eos:
        pieces.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    out["post_processor"] = {
        "type": "TemplateProcessing", "single": pieces, "pair": pieces + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {t: {"id": t, "ids": [k], "tokens": [t]} for k, t in ((1, "<s>"), (2, "</s>"))}}
    return out


LLAMA2_NORMALIZER = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
LLAMA2_DECODER = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def kinds(vocab_size):
    """name -> tokenizer.json as a dict."""
    special = AddedToken("<|endoftext|>", special=True, normalized=False)
    chat = [AddedToken(t, special=True) for t in ("<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")]
    out = {
        "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size, [special]),
        "gpt2_prefix": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), vocab_size, [special],
                                  first=["<s>", "<unk>"]),
        "llama3": byte_level(split_then_bytes(LLAMA3), vocab_size, chat, post=bos_template("<|begin_of_text|>"),
                             ignore_merges=True),
        "qwen": byte_level(split_then_bytes(QWEN), vocab_size, [special] + chat + [AddedToken("<tool>", special=False)],
                           normalizer=normalizers.NFC()),
        "o200k": byte_level(split_then_bytes(O200K), vocab_size, [special]),
        "deepseek": byte_level(split_then_bytes(*DEEPSEEK), vocab_size, [special]),
        "bloom": byte_level(split_then_bytes(BLOOM), vocab_size, [special]),
        "falcon": byte_level(pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]),
            vocab_size, [special]),
        "starcoder": byte_level(pre_tokenizers.Sequence([
            pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), vocab_size, [special]),
        "llama2": sentencepiece(vocab_size, None, LLAMA2_NORMALIZER, LLAMA2_DECODER),
        "mistral": sentencepiece(vocab_size, metaspace("first", False), None, LLAMA2_DECODER),
        "mistral_always": sentencepiece(vocab_size, metaspace("always", True), None, metaspace("always", True), True),
        "mistral_never": sentencepiece(vocab_size, metaspace("never", True), None, metaspace("never", True)),
    }
    tools = out["mistral"]["added_tokens"]
    size = len(out["mistral"]["model"]["vocab"])
    for k, (content, flags) in enumerate([("[INST]", {}), ("<mask>", {"lstrip": True}), ("<tool>", {"rstrip": True}),
                                          ("Day", {"single_word": True, "normalized": True, "special": False})]):
        tools.append({"id": size + k, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True} | flags)
    return out


def random_kind(seed, base):
    """A random pipeline around a trained model: combinations that no real model has still must agree."""
    r = random.Random(seed)
    out = json.loads(json.dumps(base))
    replace = [{"String": " "}, {"String": "e"}, {"Regex": r"\s+"}, {"Regex": r"[aeiou]{2}"}, {"Regex": "^."},
               {"Regex": r"\d+(?=\p{L})"}, {"Regex": "x*"}, {"String": "▁"}]

    def normalizer():
        return r.choice([
            {"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"},
            {"type": "StripAccents"}, {"type": "Strip", "strip_left": r.random() < .5, "strip_right": r.random() < .5},
            {"type": "Prepend", "prepend": r.choice(["▁", "ab"])},
            {"type": "Replace", "pattern": r.choice(replace), "content": r.choice(["▁", "", "xy"])}])

    def pattern():
        return r.choice([
            {"Regex": GPT2}, {"Regex": LLAMA3}, {"Regex": BLOOM}, {"Regex": r"\w+|[^\w\s]+"}, {"Regex": r"\b"},
            {"Regex": r"[\S&&[^a-m]]+"}, {"Regex": r"(?<=\p{Ll})(?=\p{Lu})"}, {"Regex": r"[^\W\d_]+|\h+"},
            {"Regex": r"\p{Han}|\p{Hiragana}+|\p{Cyrillic}+"}, {"Regex": r"^\s*|\s*$"}, {"Regex": r"[\P{L}\S]"},
            {"Regex": r"(?i)the|[^\P{N}]++|.$"}, {"Regex": r"\p{^L}+?x|\p{S}|\p{C}"}, {"Regex": r"[\]\[\-a-c^]+"},
            {"String": " "}, {"String": "an"}, {"String": "."}])

    def pre_tokenizer():
        behavior = r.choice(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
        return r.choice([
            {"type": "Split", "pattern": pattern(), "behavior": behavior, "invert": r.random() < .3},
            {"type": "Split", "pattern": pattern(), "behavior": behavior, "invert": False},
            metaspace(r.choice(["first", "always", "never"]), r.random() < .5), {"type": "Whitespace"},
            {"type": "WhitespaceSplit"}, {"type": "Digits", "individual_digits": r.random() < .5},
            {"type": "Punctuation", "behavior": behavior},
            {"type": "ByteLevel", "add_prefix_space": r.random() < .5, "trim_offsets": True,
             "use_regex": r.random() < .5}])

    def decoder():
        return r.choice([
            {"type": "Fuse"}, {"type": "ByteFallback"}, metaspace(r.choice(["first", "always", "never"]), True),
            {"type": "Replace", "pattern": r.choice(replace), "content": r.choice([" ", "", "xy"])},
            {"type": "Strip", "content": r.choice([" ", "a"]), "start": r.randrange(3), "stop": 0},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}])

    def sequence(make, key, most):
        n = r.randrange(most + 1)
        return None if n == 0 else make() if n == 1 else {"type": "Sequence", key: [make() for _ in range(n)]}

    out["normalizer"] = sequence(normalizer, "normalizers", 3)
    out["pre_tokenizer"] = sequence(pre_tokenizer, "pretokenizers", 3)
    out["decoder"] = sequence(decoder, "decoders", 4)
    model = out["model"]
    model["ignore_merges"] = r.random() < .3
    model["fuse_unk"] = r.random() < .5
    if "<unk>" in model["vocab"]:
        model["byte_fallback"] = r.random() < .5
        model["unk_token"] = r.choice([None, "<unk>"])
    size = len(model["vocab"])
    out["added_tokens"] = []
    for content in r.sample(["<s>", "</s>", "<mask>", "<tool>", "<b> ", "Day", "yesterday", "ÀB", " <x>", "the", "e"], 6):
        out["added_tokens"].append({
            "id": 0, "content": content, "single_word": r.random() < .3, "lstrip": r.random() < .3,
            "rstrip": r.random() < .3, "normalized": r.random() < .5, "special": r.random() < .5})
    for token in out["added_tokens"]:
        token["id"] = model["vocab"].get(token["content"], size)
        size += token["content"] not in model["vocab"]
    out["post_processor"] = None
    return out
