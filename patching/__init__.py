"""How to intervene on a model: loading, tasks, ablations, the masked run, and the scores taken from it."""
