"""Training of multi-scale tokenizers: `train` makes a run, and a checkpoint of it.

Needs the packages of the extra: pip install 'vartok[train]'.
"""
