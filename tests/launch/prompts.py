"""Two hundred prompts as people write them: ten scripts, emoji, quotes of all kinds, and what shells and parsers trip on."""

from __future__ import annotations

from itertools import product

SCRIPTS = (
    "a calm woman in a red coat", "una mujer tranquila, con abrigo rojo", "eine ruhige Frau im Mantel, \u00e4\u00f6\u00fc\u00df",
    "\u0441\u043f\u043e\u043a\u043e\u0439\u043d\u0430\u044f \u0436\u0435\u043d\u0449\u0438\u043d\u0430", "\u03ae\u03c1\u03b5\u03bc\u03b7 \u03b3\u03c5\u03bd\u03b1\u03af\u03ba\u03b1", "\u7a7f\u7ea2\u5927\u8863\u7684\u5e73\u9759\u5973\u4eba\uff0c\u5fae\u7b11",
    "\u8d64\u3044\u30b3\u30fc\u30c8\u306e\u5973\u6027\u3001\u7a4f\u3084\u304b\u306b", "\ube68\uac04 \ucf54\ud2b8\ub97c \uc785\uc740 \uc5ec\uc790", "\u0627\u0645\u0631\u0623\u0629 \u0647\u0627\u062f\u0626\u0629 \u0628\u0645\u0639\u0637\u0641 \u0623\u062d\u0645\u0631",
    "\u05d0\u05d9\u05e9\u05d4 \u05e8\u05d2\u05d5\u05e2\u05d4", "\u0936\u093e\u0902\u0924 \u092e\u0939\u093f\u0932\u093e", "\u0e1c\u0e39\u0e49\u0e2b\u0e0d\u0e34\u0e07\u0e43\u0e08\u0e40\u0e22\u0e47\u0e19",
)  # fmt: skip
"""One sentence in twelve scripts and languages."""
MANNERS = ("{}", "{} (smiling)", '"{}"', "'{}'", "{} = {}", "{}, [8k], {{hdr}}", "{}\\", "  {}  ", "{}\n{}")
"""How it is written."""
SIGNS = (
    "", " ", "null", "None", "true", "3", "1e3", "-1", "[1,2]", "{a: b}", "a,b", "a:b", "key=value", "=", "==", "~", "+", "++x=1", "@", "#1",
    "$HOME", "${HOME}", "${output_dir}", "\\${x}", "\\\\${x}", "$(rm -rf .)", "`ls`", "a; b", "a && b", "a | b", "a > b", "*", "?", "!!", "!$",
    "\\", "\\\\", "\\'", "\\\"", "\\n", "\t", "a\tb", "\r\n", "'", '"', "''", '""', "'\"'", "it's", "\u2018it\u2019s\u2019", "\u201cquoted\u201d", "\u00abguillemets\u00bb", "\u201edeutsch\u201c",
    "\u300c\u5f15\u7528\u300d", "(", ")", "(()", "[", "]", "{", "}", "<b>", "%s %d {0}", "100%", "c:\\users\\me", "/etc/passwd", "../..", "--help", "-m", "stream.seed=5",
    "choice(a,b)", "range(1,5)", "glob(*)", "int(3)", "sort(3,2)", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\u202eabc", "\ufeffbom", "e\u0301",
    "\u0130stanbul \u0131", "\u00a0nbsp", "a" * 2000, "yes", "no", "on", "off", "y", "~/a", "!ls",
)  # fmt: skip
"""Short ones that have a meaning to somebody on the way."""
PROMPTS = tuple(m.format(s, s) for s, m in product(SCRIPTS, MANNERS)) + SIGNS
