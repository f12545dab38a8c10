"""What `zoo:small` is made of: text, sentences, a tokenizer, and their mixture.

`text` reads the Python standard library, `sentences` writes English in which the words of the tasks occur, `tokenizer`
makes the byte pairs, `corpus` mixes all of it with the training prompts of the tasks. `experiments.train_small` trains.
"""
