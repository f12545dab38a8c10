"""What the scripts that train shipped models share: recipe, tokenizer, corpus, fitting, accuracy, card, folder.

`recipe` is everything that decides the weights, `tokenizer` makes one token per word, `models` makes a random GPT-2 or
one without MLPs and saves it, `corpus` goes from text to tokens and targets, `fit` is the training loop and the setting
in which it gives the same bits, `accuracy` counts how often the right answer comes first, `card` writes the model card,
`folder` gives a folder that appears whole or not at all, `command` is what every training command does around it, and
`specialist` puts them together for a model of one task.
"""
