"""A text of many scripts, numbers, kinds of white space and code: what tells one way of splitting text from another.

It is in Unicode's composed form (NFC), as nearly all text is: some tokenizers compose text first, and llama.cpp never does.
"""

PROBE = (
    "The quick brown fox isn't lazy: it's 12345 days old, and I'LL say we've ('RE) seen 3.14159 of 1,000,000 foxes!!!\n"
    "She'd said they'Re HERE, 'Tis O'Neill's, rock'n'roll; DON'T, XMLHttpRequest camelCase snake_case CONST_99 iPhone15Pro\n"
    "Größe, naïve façade, Ελληνικά, Кириллица, МОСКВА, Việt Nam, İstanbul'da, ქართული, አማርኛ, עברית, العربية ١٢٣, فارسی،۔ "
    "कखग, কখগ, தமழ, ภาษาไทย ๑๒๓, ລາວ, ကခဂ, កខគ\n"
    "我想在 apple 工作 1314151 天，「你好」！こんにちは、カタカナ。한국어 ～ ㄅㄆㄇ 𠮷野家 龘\n"
    "def f(x):\n\tif x  >= 10:\n        return {\"a\": [x**2, -1e-9], 'b': 0xFF}  # comment\n\n\n\r\n"
    "if (a) {\n  b = 42;\n}\n\n};\n\n    return 7;\n}\n\n"
    "  \t\t mixed   spaces    end \n \n\n  \r\n\r\n\t\tx;\n      }\n    }\n"
    "🚀🦙 👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 ✅❤\ufe0f \u200bﬁ Ⅷ ½ ٣٤٥ x₁² ''''``\"\" ... "
    "---===>>> $€£ ©™ °± ∑∞→\n"
    "1 12 123 1234 12345 123456 1234567 12345678 v1.2.3 10:30 50% #42 @user <b>bold</b> <|x|> "
    "https://example.org/a?b=c&d=%20 C:\\path\\n ~/.bashrc foo/bar//baz\n"
    "x\u00a0y\u2003z\u3000w \n   \n   "
)

# Words with combining marks, which PROBE has not: under some names (gpt-4o, tekken, kimi-k2) llama.cpp ends words at them.
MARKS = "हिन्दी में, বাংলা ভাষা, தமிழ், తెలుగు, မြန်မာ, កាន់តែពិសេសអាច, ไม่ได้, q\u0303x\u0304"
