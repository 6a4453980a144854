"""Which pre-tokenizer of llama.cpp a byte-level BPE tokenizer needs, recognized by what the tokenizer does.

llama.cpp's converter encodes one fixed text and looks the SHA-256 of the printed ids up in a table (`get_vocab_base_pre` in
its conversion/base.py, as of release 2026-10-01); the text and the table below are the same facts. A tokenizer with another
vocabulary but a known way of splitting text is recognized by its `pre_tokenizer` section instead (SHAPES). There is no default.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from hubq.errors import Unsupported
from hubq.tokenize import encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple "
    "emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333"
    " 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天"
    "～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!"
    "!!!?????? I've been 'told he's there, 'RE you sure? 'M not s"
    "ure I'll make it, 'D you like some tea? We'Ve a'lL"
)

# pre-tokenizer name -> hashes of the ids of CHECK_TEXT; but for smaug-bpe, whose hash is also that of Llama 3 without BOS:
# SHAPES tells them apart
HASHES: dict[str, tuple[str, ...]] = {
    "chatglm-bpe": (
        "b6e8e1518dc4305be2fe39c313ed643381c4da5db34a98f6a04c093f8afbe99b",
        "81d72c7348a9f0ebe86f23298d37debe0a5e71149e29bd283904c02262b27516",
    ),
    "glm4": (
        "a1336059768a55c99a734006ffb02203cd450fed003e9a71886c88acf24fdbc2",
        "9ca2dd618e8afaf09731a7cf6e2105b373ba6a1821559f258b272fe83e6eb902",
        "cdf5f35325780597efd76153d4d1c16778f766173908894c04afc20108536267",
    ),
    "minerva-7b": ("1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35",),
    "hunyuan": ("7e57df22b1fe23a7b1e1c7f3dc4e3f96d43a4eb0836d0c6bdc3436d7b2f1c664",),
    "hunyuan-dense": ("bba3b3366b646dbdded5dbc42d59598b849371afc42f7beafa914afaa5b70aa6",),
    "hy_v4": ("e6ddf9c6686791c12d698d34c31ab9be1fea9af5a3d9a6909783ab382198ae1c",),
    "falcon-h1": (
        "a6b57017d60e6edb4d88ecc2845188e0eb333a70357e45dcc9b53964a73bbae6",
        "60476e1243776c4fb1b993dbd7a5f15ac22f83c80afdf425fa5ae01c8d44ef86",
        "3eda48b4c4dc7de733d1a8b3e3b4a85243dbbf704da2ee9d42c6beced8897896",
        "48f8e02c0359c0bbdd82f26909171fac1c18a457bb47573ed1fe3bbb2c1cfd4b",
    ),
    "kimi-k2": ("81212dc7cdb7e0c1074ca62c5aeab0d43c9f52b8a737be7b12a777c953027890",),
    "qwen2": (
        "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c",
        "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
    ),
    "qwen35": (
        "1444df51289cfa8063b96f0e62b1125440111bc79a52003ea14b6eac7016fd5f",
        "d30d75d9059f1aa2c19359de71047b3ae408c70875e8a3ccf8c5fba56c9d8af4",
    ),
    "grok-2": ("66b8d4e19ab16c3bfd89bce5d785fb7e0155e8648708a1f42077cb9fe002c273",),
    "jina-v2-de": (
        "b3d1dd861f1d4c5c0d2569ce36baf3f90fe8a102db3de50dd71ff860d91be3df",
        "27949a2493fc4a9f53f5b9b029c82689cfbe5d3a1929bb25e043089e28466de6",
    ),
    "gpt-2": (
        "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4",
        "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",
    ),
    "lfm2": (
        "9e454714343b69b99b71795c1d27a68c2a1d15dab111f4d353109f966af29da7",
        "169bf0296a13c4d9b7672313f749eb36501d931022de052aad6e36f2bf34dd51",
    ),
    "gemma4": ("846deafc5b0fa786186fa4ae6c7b49903cf2f1d1895bdb80b9120d60be135252",),
    "spark2_5": ("0a766d034107bc736a3f2dc4968fd62e54a3570f1454443e0c5a4cc6bd7941ed",),
    "llama-bpe": ("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",),
    "deepseek-llm": ("049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754",),
    "deepseek-coder": ("347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821",),
    "falcon": ("8aeee3860c56296a157a1fe2fad249ec40aa59b1bb5709f4ade11c4e6fe652ed",),
    "bert-bge": ("0876d13b50744004aa9aeae05e7b0647eac9d801b5ba4668afc01e709c15e19f",),
    "falcon3": ("9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e",),
    "bert-bge-large": ("8e62295832751ca1e8f92f2226f403dea30dc5165e448b5bfa05af5340c64ec7",),
    "mpt": ("b6dc8df998e1cfbdc4eac8243701a65afe638679230920b50d6f17d81c098166",),
    "starcoder": ("35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34",),
    "stablelm2": ("32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3",),
    "refact": ("6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff",),
    "command-r": ("9c2227e4dd922002fb81bde4fc02b0483ca4f12911410dee2255e4987644e3f8",),
    "tiny_aya": ("d772b220ace2baec124bed8cfafce0ead7d6c38a4b65ef11261cf9d5d62246d1",),
    "cohere2moe": ("52df12b4c8d4176e7481aab4b6e8454d1fd0a210a04a574f6d4e067d10e23c3e",),
    "olmo": ("b6dc8df998e1cfbdc4eac8243701a65afe638679230920b50d6f17d81c098166",),
    "dbrx": ("a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e",),
    "jina-v1-en": ("c7699093ba4255a91e702aa38a596aa81669f3525dae06c2953267dde580f448",),
    "jina-v2-en": ("0876d13b50744004aa9aeae05e7b0647eac9d801b5ba4668afc01e709c15e19f",),
    "jina-v2-es": ("171aeeedd6fb548d418a7461d053f11b6f1f1fc9b387bd66640d28a4b9f5c643",),
    "jina-v5-nano": ("a023e9fdc5a11f034d3ef515b92350e56fb2af1f66c6b6811a4444ea9bf8763d",),
    "poro-chat": ("c7ea5862a53e4272c035c8238367063e2b270d51faa48c0f09e9d5b54746c360",),
    "jina-v2-code": ("7967bfa498ade6b757b064f31e964dddbb80f8f9a4d68d4ba7998fcf281c531a",),
    "viking": ("7fc505bd3104ca1083b150b17d088b59534ede9bde81f0dd2090967d7fe52cee",),
    "jais": ("b53802fb28e26d645c3a310b34bfe07da813026ec7c7716883404d5e0f8b1901",),
    "jais-2": ("bc5108ee1eb6a3d600cadd065f63190fbd0554dbc9e4bbd6a0d977970afc8d2a",),
    "codeshell": ("7b3e7548e4308f52a76e8229e4e6cc831195d0d1df43aed21ac6c93da05fec5f",),
    "tekken": ("63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e",),
    "smollm": ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",),
    "bloom": ("3c30d3ad1d6b64202cd222813e7736c2db6e1bd6d67197090fc1211fbc612ae7",),
    "gpt3-finnish": ("bc01ce58980e1db43859146dc51b1758b3b88729b217a74792e9f8d43e479d21",),
    "exaone": ("4e2b24cc4770243d65a2c9ec19770a72f08cffc161adbb73fcbb6b7dd45a0aae",),
    "phi-2": ("fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085",),
    "chameleon": ("60824e3c0d9401f89943cbb2fff727f0e2d4c545ba4df2d6e4f09a6db0f5b450",),
    "roberta-bpe": ("8b5a93ed704057481f240da0be7e7dca721d7f8f4755263b6807227a2cbeae65",),
    "gigachat": ("ad851be1dba641f2e3711822f816db2c265f788b37c63b4e1aeacb9ee92de8eb",),
    "megrez": ("d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1",),
    "deepseek-v3": ("877081d19cf6996e2c4ff0e1236341e9b7bde288f5311a56a937f0afbbb3aeb5",),
    "deepseek-r1-qwen": ("b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5",),
    "gpt-4o": ("ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e",),
    "superbpe": ("7dec86086fcc38b66b7bc1575a160ae21cf705be7718b9d5598190d7c12db76f",),
    "trillion": ("1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15",),
    "bailingmoe": ("96a5f08be6259352137b512d4157e333e21df7edd3fcd152990608735a65b224",),
    "llama4": ("d353350c764d8c3b39c763113960e4fb4919bea5fbf208a0e3b22e8469dc7406",),
    "pixtral": ("0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3",),
    "seed-coder": ("d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec",),
    "a.x-4.0": ("b0a6b1c0bd5998ebd9df08611efde34a4ff03faed45ae09c43e6b31ebd4b94cf",),
    "midm-2.0": ("f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4",),
    "exaone4": ("2085e1638f6c377a0aa4ead21b27bb4cb941bf800df86ed391011769c1758dfb",),
    "mellum": ("a1e163ecab2e718a4c829d1148b6e86824ec36163bb71941c3dca9cd5ac25756",),
    "modern-bert": ("a0b64b4385f123663873756336c085744376d015ff328bb1d901598f63c44152",),
    "afmoe": ("49fc0303c9e0d2c2c565c510f64b2d9b271276acdcdadff733249eda9f7d59df",),
    "bailingmoe2": ("9b1be57e70d20d9501b2b3186e792d81181ae36ada3903c26f9fea418cf87206",),
    "granite-docling": ("53e325976a6e142379c19b09afcae354f2f496f147afa8f9e189a33fe4e3024e",),
    "minimax-m2": ("f4f37b6c8eb9ea29b3eac6bb8c8487c5ab7885f8d8022e67edc1c68ce8403e95",),
    "kormo": ("4a2e2abae11ca2b86d570fc5b44be4d5eb5e72cc8f22dd136a94b37da83ab665",),
    "youtu": ("9d70134b369a70e5735009b6de918f7581b5211f7c074d1f89f753aea8248af1",),
    "solar-open": ("16389f0a1f51ee53e562ffd51c371dc508639ab0e4261502071836e50e223e91",),
    "exaone-moe": ("6c81ce329e0802883b22eabab0d3fa48357337ef1ecb45443828bf1f6254833f",),
    "joyai-llm": ("b4b8ca1f9769494fbd956ebc4c249de6131fb277a4a3345a7a92c7dd7a55808d",),
    "kanana2": ("e4d54df1ebc1f2b91acd986c5b51aa50837d5faf7c7398e73c1f9e9ee5d19869",),
    "f2llmv2": ("862f827721df956049dff5ca81a57f29e575280bc622e290d3bf4e35eca29015",),
    "sarvam-moe": ("62f6fb0a6fd5098caeabb19b07a5c1099cafc8b9c40eab6ea89ece4ec02fbc57",),
    "talkie": ("f728162c1315c26e40249849799b4ba3fe584c32084b4795b03eb295e63cb5af",),
    "minicpm5": ("36f3066e97b7f3994b379aaacde306c1444c6ae84e81a5ae3cd2b7ed3b8c42d4",),
    "granite-embed-multi-97m": ("f241072145675bf8322086f115aebad05e9f869557a238bf2150a2a417d1bf60",),
    "granite-embed-multi-311m": ("789696f5946cc0fc59371f39f6097cafed196b3acded6140432f26bbb1ae1669",),
    "mellum2": ("9dcf830ee9990cdbf78cc523a5f7bd9ad8f3f9890c2d3581d2785ad10f07049d",),
    "laguna": ("972da7b59cec44d1f0a490a86c96df53859e486e481563e5dddac155013d87ac",),
    "ufakzeka": ("653660222fb704f61cbf2b618a8ae6502b7f8b20c980f9a5de07ed78e13319cd",),
}

# What one pattern isolates after another, each in what the ones before it left. BYTES stands where text turns into bytes.
BYTES = "bytes"
_DIGIT, _DIGITS, _THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
_THREES_FROM_THE_RIGHT = r"(?=(\d{3})+(?!\d))"
_PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NOT_LETTER = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_NOT_LETTER}\p{{L}}+"
_SPACE = r"\s+(?!\S)|\s+"
_LINES_AND_SPACE = r"\s*[\r\n]+|" + _SPACE
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACE  # built into ByteLevel
_HAN_AND_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cl100k(digits: str, word: str = _WORD, symbols: str = _SYMBOLS + r"[\r\n]*", space: str = _LINES_AND_SPACE) -> str:
    """The pattern of GPT-4, Llama 3 and many after them."""
    return rf"{_CONTRACTION}|{word}|{digits}|{symbols}|{space}"


def _cased(contraction: str, digits: str, upper: str = _UPPER, lower: str = _LOWER) -> str:
    """Words that end before a capital letter, with a contraction at their end; the beginning of GPT-4o's pattern."""
    start = _NOT_LETTER
    return rf"{start}{upper}*{lower}+{contraction}|{start}{upper}+{lower}*{contraction}|{digits}|{_SYMBOLS}"


def _deepseek(after_symbols: str) -> str:
    word = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    return rf"{word}| ?[\p{{P}}\p{{S}}]+{after_symbols}|{_SPACE}"


_GPT4O = _cased(f"{_CONTRACTION}?", _THREE_DIGITS) + r"[\r\n/]*|" + _LINES_AND_SPACE
_TEKKEN = _cased("", _DIGIT) + r"[\r\n/]*|" + _LINES_AND_SPACE
_KIMI_WORDS = _cased(f"{_CONTRACTION}?", _THREE_DIGITS, *(f"{case[:-1]}&&[^\\p{{Han}}]]" for case in (_UPPER, _LOWER)))
_KIMI = rf"[\p{{Han}}]+|{_KIMI_WORDS}[\r\n]*|{_LINES_AND_SPACE}"
_YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_LONG_SPACES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_OTHER_SCRIPTS = "[一-龥ࠀ-一가-퟿]+"
_ALPHABETS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴ"
    "ᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ"
    "-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]"
)

_JAIS = _cl100k(_THREE_DIGITS, space=rf"\s*[\r\n]+{_LONG_SPACES}|\s{{1}}")
_SEED = _cl100k(r"\p{N}{1}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+")
_LING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACE
_QWEN35 = _cl100k(_DIGIT, _NOT_LETTER + r"[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")
_EXAONE_WORDS = _NOT_LETTER + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_EXAONE = _cl100k(_DIGIT, _EXAONE_WORDS, _SYMBOLS + r"[\r\n/]?", r"\s*[\r\n]|" + _SPACE)
_CHAMELEON = ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )")
_FULL_WIDTH = "[!-/:-~！-／：-～‘-‟\u3000-。]"

# (name, patterns, the BPE's `ignore_merges`): the ways to split that llama.cpp has, each under one name. Where llama.cpp treats
# several names alike, one of them stands for all.
SHAPES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("gpt-2", (_GPT2, BYTES), False),
    ("smollm", (_DIGIT, _GPT2, BYTES), False),
    ("falcon", (_PUNCTUATION + "+", _GPT2, BYTES, _DIGITS, "[0-9][0-9][0-9]"), False),
    ("qwen2", (_cl100k(_DIGIT), BYTES), False),
    ("qwen35", (_QWEN35, BYTES), False),
    ("llama-bpe", (_cl100k(_THREE_DIGITS), BYTES), True),
    ("smaug-bpe", (_cl100k(_THREE_DIGITS), BYTES), False),
    ("minicpm5", (_THREE_DIGITS, _cl100k(_DIGITS), BYTES), True),
    ("laguna", (r"[^\n]+|[\n]+", _cl100k(_DIGIT), BYTES), False),
    ("ufakzeka", (_cl100k(_DIGIT).removeprefix(_CONTRACTION + "|"), BYTES), False),
    ("jais-2", (_JAIS, BYTES), False),
    ("seed-coder", (_SEED, BYTES), False),
    ("bailingmoe", (_LING, BYTES), False),
    ("exaone-moe", (_EXAONE, BYTES), False),
    ("tekken", (_TEKKEN, BYTES), True),
    ("gpt-4o", (_GPT4O, BYTES), False),
    ("granite-embed-multi-97m", (_GPT4O, BYTES), True),
    ("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O, BYTES), False),
    ("kimi-k2", (_KIMI, BYTES), False),
    ("youtu", (_YOUTU, _GPT4O.replace(_THREE_DIGITS, _DIGIT), BYTES), True),
    ("deepseek-v3", (_THREE_DIGITS, _HAN_AND_KANA, _deepseek(r"[\r\n]*|\s*[\r\n]+"), BYTES), False),
    ("spark2_5", (_THREE_DIGITS, _HAN_AND_KANA, _deepseek(r"|[\r\n]"), _DIGIT, BYTES), False),
    ("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _OTHER_SCRIPTS, _DIGIT, BYTES), False),
    ("deepseek-llm", (r"[\r\n]", rf"\s?{_ALPHABETS}+", rf"\s?{_FULL_WIDTH}+", r"\s+$", _OTHER_SCRIPTS, _DIGIT, BYTES), False),
    ("bloom", (_BLOOM, BYTES), False),
    ("viking", (_BLOOM, _DIGIT, BYTES), False),
    ("superbpe", (_DIGITS, _THREES_FROM_THE_RIGHT, BYTES), False),
    ("chameleon", (*_CHAMELEON, _DIGIT, _PUNCTUATION, _GPT2, BYTES), False),
)

UNKNOWN_TO_LLAMA_CPP = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")  # settings of BPE


def recognize(tokenizer: Tokenizer) -> str:
    """The name of a tokenizer's pre-tokenizer in llama.cpp (`tokenizer.ggml.pre`).

    A tokenizer that composes text first (NFC) is taken for one that does not, as its models' converters do: llama.cpp gives
    other ids to decomposed text alone. Raises Unsupported for a pre-tokenizer that is not known here.
    """
    ids = encode(tokenizer, CHECK_TEXT).ids
    found = hashlib.sha256(str(ids).encode()).hexdigest()
    for name, hashes in HASHES.items():
        if found in hashes:
            return name
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    odd = [setting for setting in UNKNOWN_TO_LLAMA_CPP if model.get(setting)]
    patterns, ignore_merges = _patterns(document.get("pre_tokenizer")), bool(model.get("ignore_merges"))
    if not odd and _keeps_composed_text(document.get("normalizer")):
        for name, known, ignores in SHAPES:
            if (known, ignores) == (patterns, ignore_merges):
                return name
    parts = [_in_words(document.get(section)) for section in ("normalizer", "pre_tokenizer") if document.get(section)]
    parts += odd + ["ignore_merges"] * ignore_merges
    raise Unsupported(
        "the pre-tokenizer is none that llama.cpp is known to have, and a guess would damage the model: "
        + ("; ".join(parts) or "it has none"),
        "if llama.cpp supports it, add it to SHAPES in hubq/formats/gguf/pretokenizers.py; CONTRIBUTING.md says how",
    )


def _keeps_composed_text(section: Any) -> bool:
    """Whether a normalizer section leaves text in Unicode's composed form as it is."""
    if section is None or section["type"] == "NFC":
        return True
    return section["type"] == "Sequence" and all(map(_keeps_composed_text, section["normalizers"]))


def _patterns(section: Any) -> tuple[str, ...] | None:
    """What a pre_tokenizer section isolates, pattern by pattern, as in SHAPES; None if it does anything else."""
    match section:
        case {"type": "Sequence", "pretokenizers": steps}:
            parts = [_patterns(step) for step in steps]
            return None if None in parts else tuple(pattern for part in parts for pattern in part or ())
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (_escaped(pattern),)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True} if _takes_all(pattern):
            return (_escaped(pattern),)
        case {"type": "Digits", "individual_digits": one}:
            return (_DIGIT if one else _DIGITS,)
        case {"type": "Punctuation", "behavior": "Isolated" | "Contiguous" as behavior}:
            return (_PUNCTUATION if behavior == "Isolated" else _PUNCTUATION + "+",)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": splits}:
            return (_GPT2, BYTES) if splits else (BYTES,)
    return None


def _escaped(pattern: str) -> str:
    """A pattern with its line ends and tabs as escapes: tokenizers write them in either way."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")


def _takes_all(pattern: str) -> bool:
    """Whether a pattern leaves nothing of a text between its matches: so do those that end like GPT-4's."""
    return r"|\p{N}" in pattern and r"| ?[^\s\p{L}\p{N}]" in pattern and pattern.endswith(r"|\s+")


def _in_words(section: Any) -> str:
    """A normalizer or pre_tokenizer section in a few words."""
    for steps in ("pretokenizers", "normalizers"):
        if steps in section:
            return ", ".join(map(_in_words, section[steps])) or "none"
    details = [value for key, value in section.items() if key in ("pattern", "behavior", "content")]
    texts = [next(iter(value.values())) if isinstance(value, dict) else str(value) for value in details]
    flags = [key for key, value in section.items() if value is True and key != "trim_offsets"]
    return " ".join([section["type"], *(f"{text[:40]}…" if len(text) > 40 else text for text in texts), *flags])
