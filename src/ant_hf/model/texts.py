"""Fixed texts for checks that need none of the training's data."""

from __future__ import annotations

# What tokenizers lose when they are wrong: spaces, line ends, case, accents, scripts, unusual characters.
ROUND_TRIP = (
    "The quick brown fox jumps over the lazy dog.",
    " A leading space, a trailing one ",
    "Two  spaces,   three, and a\ttab.",
    "Lines\nand\n\nparagraphs\r\nof two systems\n",
    "It's \"quoted\", isn't it? Yes -- (mostly) [sic]; 100% & more: #1!",
    "Numbers: 0, 7, 42, 1,234,567.89, 3e-4, 0x1F, 2026-11-22.",
    "CamelCase snake_case kebab-case UPPER lower MiXeD",
    "Stra\u00dfe, na\u00efve caf\u00e9, \u0141\u00f3d\u017a, \u0130stanbul, \u00c5ngstr\u00f6m",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u4f60\u597d\u3001\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\U0001f600 \U0001f469\u200d\U0001f680 \u2764\ufe0f \U0001f1fa\U0001f1f3",
    "\u2018single\u2019 \u201cdouble\u201d \u2013 \u2014 \u2026 \u00a0 \u200b end",
    "def f(x):\n    return {'a': [x ** 2, None]}  # code\n",
    "a" * 300,
)  # fmt: skip

# Plain English for a first look at any model: a pair of weights and tokenizer that do not belong
# together is worse here than a uniform guess, whatever it was trained on.
ENGLISH = (
    "In the morning the old man went down to the river. The water was low, for there had been no rain since "
    "the beginning of the month, and he could see the stones on the bottom. He sat on the bank and looked at "
    "the house on the other side, where his brother had lived when they were young. Nobody lived in it now.",
    "A good teacher knows that people do not learn by being told the same thing many times. They learn when "
    "they try to do something, find that it does not work, and ask why. The first answer is often wrong. The "
    "second is better, because now they know what to look for.",
    "When the king heard what had been done in the city, he called his servants together and said to them: "
    "Go and see whether these things are true, and come back before the evening. So they went out, and they "
    "saw many people in the streets, men and women and children, and all of them were carrying bread.",
    "The land is high in the north and falls toward the sea. Most of the people live near the coast, where "
    "the ground is good and the winters are not cold. They grow corn and keep a few animals, and in the "
    "summer they sell what they do not need to those who come by ship.",
)
