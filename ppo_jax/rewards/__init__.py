"""The library of rewards.

A reward is one of two functions. On the device, part of the compiled step, pure JAX:

    fn(rollout, columns) -> scores_B or rewards_BT

On the host, plain Python, strings in (the compiled step is cut around it):

    fn(prompts, responses, **columns) -> list[float] or dict[str, list[float]]

`base` sorts out which one was given, `host` calls those on the host, in the processes of `pool`.

On the device: `lexicon` (lists of words and, by `phrases`, of several; sentiment), `length`,
`words` (their number), `format` (regular expressions), `diversity` (distinct and repeated n-grams),
`exact` (the text of a column), `ending`, `learned` (a reward model); `byte_stream` reads a response
as bytes, `word_hashes` its words. On the host: `answers` (numbers, boxed, Countdown),
`math_answers`, `overlap` (ROUGE-L, BLEU, chrF), `language`, `compound` (VADER), `hf_classifier` (a
model with a tokenizer of its own), `endpoint` (HTTP); `arithmetic` calculates with what models
write. `by_task` gives each task of a mixture a reward of its own.
"""
