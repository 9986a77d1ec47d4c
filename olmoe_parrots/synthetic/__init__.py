"""The synthetic tasks of the paper's section 4: phone-book (memory) and shortest path (reasoning).

One file per task holds its vocabulary, its rows and its scoring. Nothing here knows of models: scoring takes decoded
token ids. The command is ``python -m olmoe_parrots.synthetic phone_book|shortest_path``.
"""
