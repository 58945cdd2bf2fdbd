"""Prompts of many kinds and lengths, from 1 to about 1,500 tokens, the same on every run."""

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

CODE = '''def quicksort(items):
    """Sort a list."""
    if len(items) <= 1:
        return items
    pivot = items[len(items) // 2]
'''

STORY = (
    "The lighthouse keeper counted the ships that passed at night. Each had a lamp at the mast, and each "
    "lamp had a colour that told where it came from. In the long winter of that year he saw none at all, "
    "and he began to write letters to the captains whom he remembered. "
)

PROMPTS: dict[str, str] = {
    "one_token": "The",
    "two_tokens": "Once upon",
    "newline": "\n",
    "digits": "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89,",
    "arithmetic": "12 + 30 = 42. 17 + 5 =",
    "capital": "The capital of France is",
    "chat_short": CHAT.format("What is gravity? Answer in one sentence."),
    "chat_list": CHAT.format("List three fruits and their colours."),
    "chat_system": "<|im_start|>system\nYou are terse.<|im_end|>\n" + CHAT.format("Why is the sky blue?"),
    "code_python": CODE,
    "code_c": "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "json": '{"name": "forebay", "tiers": ["gateway", "prefill", "decode"], "ports": {"gateway": 50051,',
    "markdown": "# Recipe\n\n## Ingredients\n\n- 2 eggs\n- 100 g flour\n-",
    "unicode_german": "Übermäßig große Käfer fraßen die süßen Äpfel, weil",
    "unicode_cjk": "東京は日本の首都です。京都は",
    "unicode_emoji": "🙂🙃👩‍👩‍👧‍👦 means family. 🚀 means",
    "unicode_arabic": "اللغة العربية جميلة و",
    "spaces": "a    b     c      d       e",
    "exact_block": " word" * 32,
    "block_plus_one": " word" * 33,
    "repeat_short": "na " * 60,
    "repeat_long": "The quick brown fox jumps over the lazy dog. " * 60,
    "story_300": STORY * 6,
    "story_700": STORY * 13 + "Then, one evening,",
    "code_long": CODE * 12,
    "long_1500": STORY * 26 + "In the end the keeper",
}
