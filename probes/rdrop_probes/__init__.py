"""The science of rdrop-analysis: sites, sub-models, divergences, statistics and one file for each probe.

Knows nothing of files, commands or HTML. Importing the package itself loads neither torch nor pandas.
"""
